"Tests run at smoke size with one thread, as the notebooks do."
import os

os.environ.setdefault('IN_TEST', '1')
os.environ['TQDM_DISABLE'] = '1'
os.environ['HF_HUB_OFFLINE'] = '1'
