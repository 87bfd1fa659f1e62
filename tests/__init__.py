"Tests lie as the modules that they test: tests/data/test_splits.py tests data/splits.py"
