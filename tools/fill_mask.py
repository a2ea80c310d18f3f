"""Let an exported model fill a mask.   tools/fill_mask.py FOLDER SENTENCE"""

import sys

from transformers import pipeline
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
folder, sentence = sys.argv[1:]
print(f"\n{sentence}")
for guess in pipeline("fill-mask", model=folder, device="cpu")(sentence):
    print(f"  {guess['score']:6.1%}  {guess['token_str']}")
