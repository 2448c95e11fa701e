from exp26 import *
from text_clip import *
def clip(steps=4000,batch=128,lr=1e-3,name='clip',aug=1):
    idx=TRAIN.nonzero()[:,0]; caps=[emoji_captions(T[i]) for i in idx.tolist()]; x=X[idx]
    vocab=tuple(sorted({w for c in caps for t in c for w in words_of(t)})); print('vocab',len(vocab))
    torch.manual_seed(0); net=PictureTexts(vocab); print(sum(p.numel() for p in net.parameters()))
    def loss(m,i):
        texts=[c[torch.randint(len(c),()).item()] for c in (caps[k] for k in i.tolist())]
        im=slightly_worse(shift(as_floats(x[i]),aug)); 
        return info_nce(m.of_images(im),m.of_texts(m.text.ids(texts)),m.log_scale.exp().clamp(max=100))
    run=fit(net,loss,len(x),batch,lr,steps,seed=0,stage='clip',ema_decay=.998); net=run['ema'].eval(); torch.save((net.config,net.state_dict()),K+name+'.pt')
    for nm,sel in (('train',TRAIN),('combos',OUT),('designs',~TRAIN&~OUT)):
        k=sel.nonzero()[:,0]; 
        with torch.no_grad(): a=net.of_images(as_floats(X[k])); b=net.of_texts(net.text.ids([emoji_captions(T[i])[0] for i in k.tolist()]))
        print(nm,len(k),{m:round(retrieval(a,b,m),3) for m in (10,100)},flush=True)
if __name__=='__main__':
    kw={k:eval(v) for k,v in (s.split('=') for s in sys.argv[1:] if '=' in s)}; clip(**kw)
