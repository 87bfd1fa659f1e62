"""Servers of files that behave as badly as real ones: they stall, cut off, lie, redirect, refuse ranges, answer with a
page; and one that plays Google Drive behind a proxy, and one that plays the hub"""
import re
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer


class Site:
    "Files of a server, how it behaves, and what it was asked for"
    def __init__(self, files, **manners):
        self.files, self.manners, self.asked = files, manners, []

    def manner(self, name, default=None):
        "How it behaves now; a list is one manner a request"
        found = self.manners.get(name, default)
        return (found.pop(0) if found else default) if isinstance(found, list) else found


class Handler(BaseHTTPRequestHandler):
    protocol_version, site = 'HTTP/1.1', None

    def log_message(self, *words): pass

    def do_HEAD(self): self.answer(body=False)

    def do_GET(self): self.answer()

    def answer(self, body=True):
        site, path = self.site, self.path.split('?')[0]
        site.asked.append((self.command, self.path, self.headers.get('Range')))
        if special := site.manners.get('special'):
            if special(self, body): return
        if to := site.manners.get('redirect', {}).get(path): return self.reply(302, b'', Location=to)
        if status := site.manner('status'): return self.reply(status, b'no')
        if page := site.manner('page'): return self.reply(200, page, **{'Content-Type': 'text/html'})
        if path not in site.files: return self.reply(404, b'not here')
        self.send_part(site.files[path], body)

    def send_part(self, content, body=True, **headers):
        "The content from the place that is asked for, with the manners of the site"
        site, start = self.site, 0
        tag = site.manner('tag', '"v1"')
        if tag: headers['ETag'] = tag
        asked = re.match(r'bytes=(\d+)-', self.headers.get('Range') or '')
        same = self.headers.get('If-Range') in (None, tag)
        if asked and same and site.manner('ranges', True):
            start = int(asked[1])
            if start >= len(content): return self.reply(416, b'')
            headers['Content-Range'] = f'bytes {start}-{len(content) - 1}/{len(content)}'
        rest = content[start:]
        length = site.manner('length', len(rest))
        sent = rest[:site.manner('cut')] if body else b''
        self.reply(206 if 'Content-Range' in headers else 200, sent, length, **headers)

    def reply(self, status, content, length=None, **headers):
        self.send_response(status)
        short = length is not None and length != len(content)
        for k, v in headers.items(): self.send_header(k, v)
        self.send_header('Content-Length', str(len(content) if length is None else length))
        if short: self.send_header('Connection', 'close')
        self.end_headers()
        if self.command == 'HEAD': return
        step, pause = self.site.manners.get('step', 2**16), self.site.manner('pause', 0)
        for i in range(0, len(content), step):
            try: self.wfile.write(content[i:i + step])
            except OSError: return
            if pause: time.sleep(pause)
        if short:
            stall = self.site.manner('stall', 0)
            if stall: time.sleep(stall)
            self.close_connection = True


class _Quiet(ThreadingHTTPServer):
    "A client that was killed is no error"
    def handle_error(self, request, client_address): pass


@contextmanager
def serving(site, handler=Handler):
    "A server of a site, in a thread; gives its address"
    kind = type('Handler', (handler,), {'site': site})
    server = _Quiet(('127.0.0.1', 0), kind)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
    thread.start()
    try: yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def proxying(site, certificate):
    "A proxy that answers every encrypted request itself, by a certificate that the client trusts; gives its address"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    answer = type('Answer', (Handler,), {'site': site})

    class Proxy(StreamRequestHandler):
        def handle(self):
            while self.rfile.readline().strip(): pass  # CONNECT host:port, and its headers
            self.wfile.write(b'HTTP/1.1 200 OK\r\n\r\n')
            try:
                with context.wrap_socket(self.request, server_side=True) as secure:
                    answer(secure, self.client_address, self.server)
            except OSError: pass

    ThreadingTCPServer.allow_reuse_address = True
    server = ThreadingTCPServer(('127.0.0.1', 0), Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_address[1]}'
    finally:
        server.shutdown()
        server.server_close()


CONFIRM = b'''<!DOCTYPE html><html><body>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
<input type="hidden" name="id" value="1x"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"></form></body></html>'''


def drive(content):
    "What Google Drive does: a page that asks, then the file"
    def special(h, body):
        if h.path.startswith('/uc'): h.reply(200, CONFIRM, **{'Content-Type': 'text/html; charset=utf-8'})
        else: h.send_part(content, body, **{'Content-Type': 'application/octet-stream',
                                            'Content-Disposition': 'attachment; filename="any.pth"'})
        return True
    return special


def hub(content, sha256, token=''):
    "What the hub does: facts of a file in the headers of HEAD, then the file; gated where a token is given"
    def special(h, body):
        if token and h.headers.get('Authorization') != f'Bearer {token}':
            h.reply(403 if h.headers.get('Authorization') else 401, b'', **{
                'X-Error-Code': 'GatedRepo', 'X-Error-Message': 'Access to this model is restricted'})
        elif '/resolve/' not in h.path: h.reply(404, b'')
        else: h.send_part(content, body, **{'X-Repo-Commit': 'a'*40, 'X-Linked-Etag': f'"{sha256}"',
                                            'X-Linked-Size': str(len(content))})
        return True
    return special
