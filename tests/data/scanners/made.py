"Files as scanners write them, small, with the patient in every field that can name him"
import io
import struct
from types import SimpleNamespace

import numpy as np
from PIL import Image

WHO = SimpleNamespace(last='Zzyzx', first='Quillon', number='QX77-4711', birth=(1933, 11, 27))
SECRETS = 'zzyzx', 'quillon', 'qx77', '471155923', '19331127', '1933-11-27', '12384.0'  # the last: as in a .vol
N, H, W = 3, 20, 24
LINES = {k: 2. + i for i, k in enumerate(('ILM', 'RNFL', 'GCL', 'IPL', 'INL', 'OPL', 'ELM', 'PR1', 'PR2', 'RPE', 'BM'))}
ENDINGS = {'vol': '.vol', 'xml': '.xml', 'fda': '.fda', 'fds': '.fds', 'dicom': '.dcm', 'fundus': '.dcm', 'mat': '.mat',
           'mhd': '.mhd', 'nifti': '.nii.gz', 'e2e': '.e2e'}


def pixels(seed=0, dtype=np.uint8):
    "Smooth planes with a bright band, other ones for each seed"
    rng = np.random.default_rng(seed)
    x = np.linspace(20, 200, H)[None, :, None] + rng.normal(0, 5, (N, H, W))
    return np.clip(x, 0, 255).astype(dtype)


def text(s, n): return str(s).encode().ljust(n, b'\0')[:n]


def write_vol(path, seed=0):
    full = f'{WHO.last} {WHO.first}'
    head = struct.pack('<12sIIIdddIIddId4sQiI', b'HSF-OCT-103', W, N, H, .0118, .24, .0039, 16, 12, .0118, .0118, 30, 0,
                       b'OD', 0, 3, 2048)
    head += text(WHO.number, 16) + text(full, 16) + struct.pack('<I', 471155923) + text(WHO.number, 24)
    head += struct.pack('<dI', 12384.0, 471155923) + text(full, 24)
    head += struct.pack('<dIIII', 4e4, 0, 0, 0, 0) + text(full, 34)
    out = head.ljust(2048, b'\0') + pixels(seed)[0, :12, :16].tobytes()
    number = dict(zip(LINES, (0, 2, 3, 4, 5, 6, 8, 14, 15, 16, 1), strict=True))
    rows = np.full((17, W), 3.4028235e38, '<f4')
    for k, v in LINES.items(): rows[number[k]] = v
    for i, x in enumerate(pixels(seed)):
        one = struct.pack('<12sIddddIIfI6f', b'HSF-BS-103', 2048, 0, .01*i, .1, .01*i, 17, 256, 30, 0, *[0]*6)
        out += one.ljust(256, b'\0') + rows.tobytes().ljust(2048 - 256, b'\0') + ((x/255.)**4).astype('<f4').tobytes()
    path.write_bytes(out)


def write_xml(path, seed=0):
    stem = f'{WHO.last}_{WHO.number}_{seed}'
    lines = ''.join(f'<SegLine><Name>{k}</Name><Array>{f"{v} "*W}</Array></SegLine>' for k, v in LINES.items())
    every = []
    for i, x in enumerate([pixels(seed)[0, :12, :16], *pixels(seed)]):
        Image.fromarray(x).save(path.parent/f'{stem}_{i}.png')
        place = ''.join(f'<{e}><Coord><X>{v}</X><Y>{.24*i}</Y></Coord></{e}>' for e, v in (('Start', 0), ('End', .28)))
        every.append(
            f'<Image><ID>{WHO.number}</ID><ImageType><Type>{"OCT" if i else "LOCALIZER"}</Type></ImageType>'
            f'<OphthalmicAcquisitionContext><Width>{x.shape[1]}</Width><Height>{x.shape[0]}</Height>'
            f'<ScaleX>0.0118</ScaleX><ScaleY>0.0039</ScaleY>{place}</OphthalmicAcquisitionContext>'
            f'<ImageData><ExamURL>C:\\{WHO.last}\\{stem}_{i}.png</ExamURL></ImageData>'
            f'{f"<Segmentation>{lines}</Segmentation>" if i else ""}</Image>')
    y, m, d = WHO.birth
    path.write_text(
        f'<?xml version="1.0" encoding="utf-8"?><HEDX><BODY><Patient><ID>471155923</ID>'
        f'<PatientID>{WHO.number}</PatientID><LastName>{WHO.last}</LastName><FirstNames>{WHO.first}</FirstNames><Title>{WHO.last}</Title><Birthdate><Date>'
        f'<Year>{y}</Year><Month>{m}</Month><Day>{d}</Day></Date></Birthdate><Study><Operator>{WHO.last}</Operator>'
        f'<Series><Laterality>R</Laterality>{"".join(every)}</Series></Study></Patient></BODY></HEDX>')


def chunk(name, content): return bytes([len(name)]) + name + struct.pack('<I', len(content)) + content


def write_fda(path, seed=0, scan=b'@IMG_JPEG'):
    patient = text(WHO.number, 32) + text(WHO.first, 32) + text(WHO.last, 32) + text(WHO.first, 8)
    patient += struct.pack('<B3H', 1, *WHO.birth) + text(f'{WHO.last} '*90, 600)
    rows = [(b'MULTILAYERS_1', 2.), (b'MULTILAYERS_7', 12.)]
    contours = [struct.pack('<20sBBIII', k, 0, 0, W, N, 2*W*N) + np.full((N, W), H - v, '<u2').tobytes()
                for k, v in rows]
    x = pixels(seed)
    if scan == b'@IMG_JPEG':
        planes = struct.pack('<BIIIIII', 2, 0, 0, W, H, N, 0)
        for p in x:
            raw = io.BytesIO()
            Image.fromarray(p).save(raw, 'JPEG2000', irreversible=False)
            planes += struct.pack('<i', len(raw.getvalue())) + raw.getvalue()
    else: planes = struct.pack('<BIIIIBI', 2, W, H, 16, N, 0, 2*x.size) + (x.astype('<u2')*200).tobytes()
    raw = io.BytesIO()
    Image.fromarray(x[0, :12, :16]).save(raw, 'PNG')
    grey = struct.pack('<IIIIBI', 16, 12, 8, 1, 0, len(raw.getvalue())) + raw.getvalue()
    capture = struct.pack('<BBI', 0, 0, 0) + text(WHO.last, 100) + bytes(12)
    scale = struct.pack('<IIIddd', 0, 0, 0, W*.0118, N*.24, 3.9) + bytes(18)
    chunks = [(b'@PATIENT_INFO_02', patient), (scan, planes), (b'@CAPTURE_INFO_02', capture),
              (b'@PARAM_SCAN_04', scale), (b'@IMG_TRC_02', grey), *((b'@CONTOUR_INFO', c) for c in contours)]
    path.write_bytes(b'FOCTFDA' + bytes(8) + b''.join(chunk(*c) for c in chunks) + b'\0')


def write_fds(path, seed=0): write_fda(path, seed, b'@IMG_SCAN_03')


def write_dicom(path, seed=0, kind='OPT'):
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian
    x = pixels(seed) if kind == 'OPT' else np.stack([pixels(seed)[0]]*3, -1)
    d = pydicom.Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.SOPClassUID, d.SOPInstanceUID = '1.2.840.10008.5.1.4.1.1.77.1.5.4', '1.2.3'
    d.Modality, d.ImageLaterality = kind, 'R'
    name = f'{WHO.last}^{WHO.first}'
    d.PatientName = d.OtherPatientNames = d.ReferringPhysicianName = d.PatientMotherBirthName = d.OperatorsName = name
    d.PatientID = d.AccessionNumber = d.StudyID = WHO.number
    d.PatientBirthDate = '19331127'
    for k in ('PatientComments', 'ImageComments', 'StudyDescription', 'SeriesDescription', 'PatientAddress',
              'InstitutionName', 'ProtocolName'): setattr(d, k, name)
    d.add_new((0x0011, 0x0010), 'LO', WHO.last)
    d.add_new((0x0011, 0x1001), 'LO', name)
    d.SamplesPerPixel, d.PhotometricInterpretation = (1, 'MONOCHROME2') if kind == 'OPT' else (3, 'RGB')
    if kind == 'OPT': d.NumberOfFrames, d.SpacingBetweenSlices = N, '0.24'
    else: d.PlanarConfiguration = 0
    d.Rows, d.Columns, d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = H, W, 8, 8, 7, 0
    d.PixelSpacing, d.PixelData = [.0039, .0118], x.tobytes()
    d.save_as(path, enforce_file_format=True)


def write_fundus(path, seed=0): write_dicom(path, seed, 'OP')


def write_mat(path, seed=0):
    from scipy.io import savemat
    lines = np.stack([np.full((W, N), 3. + i) for i in range(8)])
    x = np.moveaxis(pixels(seed), 0, 2)
    savemat(path, {'images': x, 'manualLayers1': lines, 'manualFluid1': (x > 190)*1.,
                   'patient': f'{WHO.last} {WHO.number}', 'info': {'name': WHO.first, 'birth': '1933-11-27'}})


def write_mhd(path, seed=0):
    raw = path.with_suffix('.raw')
    raw.write_bytes(pixels(seed).tobytes())
    path.write_text(f'ObjectType = Image\nNDims = 3\nPatientName = {WHO.last}\nPatientID = {WHO.number}\n'
                    f'Comment = {WHO.first} 1933-11-27\nDimSize = {W} {H} {N}\n'
                    f'ElementType = MET_UCHAR\nElementSpacing = 0.0118 0.0039 0.24\n'
                    f'ElementDataFile = {raw.name}\n')


def write_nifti(path, seed=0):
    import nibabel
    image = nibabel.Nifti1Image(np.ascontiguousarray(pixels(seed).T), np.diag([.0118, .0039, .24, 1]))
    image.header.set_xyzt_units('mm')
    for k in ('descrip', 'aux_file', 'intent_name', 'db_name'): image.header[k] = f'{WHO.last} {WHO.number}'[:10]
    image.to_filename(path)


def e2e_bytes(seed=0):
    "Write an .e2e file as oct-converter's structures describe it: patient, eye, SLO, B-scans, boundaries"
    y, m, d = WHO.birth
    patient = text(WHO.first, 31) + text(WHO.last, 51) + text(WHO.last, 15) + struct.pack('<I', 10000*y + 100*m + d)
    patient += b'M' + text(WHO.number, 25)
    chunks = [(9, 0, -1, patient), (3, 0, -1, struct.pack('<I', 0) + b'R' + bytes(59))]
    slo = pixels(seed)[0, :12, :16]
    chunks.append((0x40000000, 0, -1, struct.pack('<5I', slo.size, 0, 0, 12, 16) + slo.tobytes()))
    for i, x in enumerate(pixels(seed)):
        raw = (x.astype('<u2') << 8).tobytes()
        chunks.append((0x40000000, 1, 2*i, struct.pack('<5I', len(raw), 0, 0, H, W) + raw))
        for k, v in ((0, 2.), (1, 12.)):
            chunks.append((10019, 0, 2*i, struct.pack('<4I', 0, k, 0, W) + np.full(W, v, '<f4').tobytes()))
    at = 36 + 52 + 52 + 44*len(chunks)
    entries, bodies = b'', b''
    for kind, ind, slice_id, body in chunks:
        entry = 0, at + len(bodies), len(body), 0, 471155923, 1, 1, slice_id, 0, 0, kind, 0
        entries += struct.pack('<IIIIIIIiHHII', *entry)
        head = 0, 0, 0, len(body), 0, 471155923, 1, 1, slice_id, ind, 0, kind, 0
        bodies += text('MDbData', 12) + struct.pack('<IIIIIIIIiHHII', *head) + body
    directory = text('MDbDir', 12) + struct.pack('<I20s4I', 0, bytes(20), len(chunks), 0, 0, 0)
    return (text('CMDb', 12) + bytes(24) + text('MDbMDir', 12) + struct.pack('<I20s4I', 0, bytes(20), 0, 88, 0, 0)
            + directory + entries + bodies)


def write_e2e(path, seed=0): path.write_bytes(e2e_bytes(seed))


WRITERS = {k: globals()[f'write_{k}'] for k in ENDINGS}


def write_all(folder, kinds=tuple(WRITERS), seed=0):
    "A file of each kind, in a folder and under a name that name the patient"
    home = folder/f'{WHO.last}_{WHO.number}'
    home.mkdir(parents=True, exist_ok=True)
    paths = {k: home/f'{WHO.last}_{WHO.first}_{k}{ENDINGS[k]}' for k in kinds}
    for i, (k, p) in enumerate(paths.items()): WRITERS[k](p, seed + i)
    return paths
