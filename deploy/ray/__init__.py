"""vqserve on Ray: serve.py is the service, encode_folder.py encodes folders of pictures."""
