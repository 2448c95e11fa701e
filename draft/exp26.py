"exp26.py PART ... : judge | ae NAME secs k=v.. | dn NAME ae secs k=v.. ; run with PYTHONPATH=/tmp/words:/tmp/kit/c13:/work/main/bench"
import os,sys,time,json; os.environ['TQDM_DISABLE']='1'; os.environ.setdefault('ACCELERATE_MIXED_PRECISION','bf16')
import hashlib, math, torch, numpy as np, torch.nn.functional as F
from dataclasses import replace
from PIL import Image
from ldm_nb.core import *; from ldm_nb.data import *; from ldm_nb.attributes import *; from ldm_nb.loop import fit
from ldm_nb.faces import *; from ldm_nb.training import *; from ldm_nb.autoencoder import psnr
from ldm_nb.vae import VAE, LatentStats
from ldm_nb.denoiser import *; from ldm_nb.forward import Schedule; from ldm_nb.samplers import walk
from text_model import *; from text_words import *
K='/tmp/kit/c13/'
TONES=('light','medium-light','medium','medium-dark','dark'); GENDERS=('woman','man','person')
A=(Attribute('skin',TONES),Attribute('gender',GENDERS),Attribute('trade',TRADES))
T=emoji_table('all'); X=emoji('all').levels
def combo_out(r):
    if r['role'] not in TRADES or r['skin'] not in TONES or r['gender'] not in GENDERS: return False
    return int.from_bytes(hashlib.sha256(f"{r['role']}|{r['skin']}|{r['gender']}".encode()).digest()[:8],'big')<.2*2**64
def val(r):
    return [ (c.index(v) if v in c else math.nan) for c,v in ((TONES,r['skin']),(GENDERS,r['gender']),(TRADES,r['role']))]
V=torch.tensor([val(r) for r in T]); OUT=torch.tensor([combo_out(r) for r in T]); 
tr=emoji_table('train'); ids={(r['id']) for r in tr}
TRAIN=torch.tensor([r['id'] in ids for r in T])&~OUT
def shift(x,most=1):
    p=F.pad(x,(most,)*4,value=1.); dy,dx=torch.randint(0,2*most+1,(2,)).tolist(); h,w=x.shape[-2:]
    return p[...,dy:dy+h,dx:dx+w]
def judge(steps=4000,widths=(32,64,128,192)):
    people=~V.isnan().all(1)&~OUT
    lv,vv=X[people],V[people]; print('people',len(lv),'held out',OUT.sum().item(), 'of trades',(V[:,2]==V[:,2]).sum().item())
    torch.manual_seed(0); net=AttributeJudge(A,3,32,widths=widths)
    sc=scale_values(vv,A)
    def loss(m,i):
        x=shift(as_floats(lv[i])); x=slightly_worse(x)
        return judge_loss(m(x),sc[i])
    run=fit(net,loss,len(lv),64,2e-3,steps,seed=0,stage='judge',ema_decay=.998)
    j=run['ema'].eval(); torch.save(j.state_dict(),K+'judge.pt')
    for nm,sel in (('held out',OUT),('train',people)):
        rd=j.read(X[sel]); v=V[sel]; print(nm,{a.name:round((rd[:,k]==v[:,k])[~v[:,k].isnan()].float().mean().item(),3) for k,a in enumerate(A)})
    soft=F.avg_pool2d(F.pad(as_floats(X[OUT]),(1,)*4,'replicate'),3,1); rd=j.read(soft); print('blurred held out',(rd==V[OUT]).float().mean(0))
    return j
def load_j(widths=(32,64,128,192)):
    j=AttributeJudge(A,3,32,widths=widths); j.load_state_dict(torch.load(K+'judge.pt')); return j.eval()
def grid(rows,path,k=4,bg=255):
    a=[np.concatenate(list(((t.clamp(-1,1)+1)*127.5).round().byte().permute(0,2,3,1).numpy()),1) for t in rows]
    Image.fromarray(np.concatenate(a).repeat(k,0).repeat(k,1)).save(path)
def ae(name,seconds,**kw):
    r=Recipe(**(dict(ae_batch=16,ae_lr=2e-3)|kw)); x=X[TRAIN]
    run=train_autoencoder(x,r,seconds=seconds); vae=run['model'].eval(); torch.save((vae.config,vae.state_dict()),K+f'ae-{name}.pt')
    t=as_floats(X[OUT]); u=as_floats(X[~TRAIN&~OUT])
    with torch.no_grad():
        for nm,v in (('combos',t),('designs',u)):
            y=vae.decode(vae.encode(v)).clamp(-1,1); print(name,nm,len(run['losses']),'steps',f'{psnr(y,v).mean():.2f} dB')
            rd=load_j().read(y) if nm=='combos' else None
            if rd is not None: print('  read', (rd==V[OUT]).float().mean(0).tolist())
        grid([u[:16],vae.decode(vae.encode(u[:16])),t[:16],vae.decode(vae.encode(t[:16]))],K+f'ae-{name}.png')
class Table: # captions' features, a random one of each picture
    def __init__(self, texts):
        u=sorted({t for each in texts for t in each}); self.at={t:i for i,t in enumerate(u)}
        self.rows=known_features(u); self.choices=[[self.at[t] for t in each] for each in texts]
    def __getitem__(self,i):
        pick=[self.choices[k][torch.randint(len(self.choices[k]),()).item()] for k in i.tolist()]
        x=self.rows[pick]; n=(~x.isnan().any(2)).sum(1).max(); return x[:,:n]
def known_features(texts):
    f=np.load(K+'emoji_words.npz'); caps=json.loads(f['captions'].tobytes()); L=f['lengths'].astype(int); off=np.concatenate([[0],L.cumsum()]); at={c:i for i,c in enumerate(caps)}
    lv=torch.from_numpy(f['levels']).float()*float(f['step'])
    return torch.nn.utils.rnn.pad_sequence([lv[off[at[t]]:off[at[t]+1]] for t in texts],batch_first=True,padding_value=math.nan)
def dn(name,aename,seconds,variants=3,guidance=2.,cross=True,pooled=True,words=True,lr=2e-3,batch=64,widths=(64,96,128),dropout=.1,drop=.1,seed=0,ema=.998,blocks=1,word_width=128):
    cfg,sd=torch.load(K+f'ae-{aename}.pt'); vae=VAE(**cfg); vae.load_state_dict(sd); vae.eval()
    idx=TRAIN.nonzero()[:,0]; x=as_floats(X[idx])
    with torch.no_grad(): z=torch.cat([vae.encode(b) for b in x.split(200)])

    mu,sdv=z.mean((0,2,3),keepdim=True),z.std((0,2,3),keepdim=True); z=(z-mu)/sdv
    caps=Table([emoji_captions(T[i])[:variants] for i in idx.tolist()])
    torch.manual_seed(seed); net=WordUNet(z.shape[1],widths,blocks,192,dropout,features=64,word_width=word_width,cross=cross)
    sch=Schedule('flow')
    def loss(m,i): return diffusion_loss(m,z[i],drop_conditions(caps[i],0,drop),sch,'flow_prediction')
    t0=time.time(); run=fit(net,loss,len(z),batch,lr,seconds=seconds,seed=seed,stage='dn',ema_decay=ema)
    ema_=run['ema'].eval(); torch.save((net.config,ema_.state_dict()),K+f'dn-{name}.pt')
    j=load_j()
    def draw(rows,g,seed=1):
        out=[]
        for k,b in enumerate(rows.split(100)):
            d=guided(ema_,b,sch,'flow_prediction',guidance=g,interval=(.1,1.)); n=torch.randn(len(b),*z.shape[1:],generator=torch.Generator().manual_seed(seed*1000+k))
            with torch.no_grad(): out.append(vae.decode(walk(d,n,sch,12,'dpm')*sdv+mu).clamp(-1,1))
        return torch.cat(out)
    trades=(V[:,2]==V[:,2])&(V[:,0]==V[:,0])&(V[:,1]==V[:,1])
    for g in (1.,2.,3.):
        res={}
        for nm,sel in (('trained',trades&~OUT),('unseen',OUT)):
            k=sel.nonzero()[:,0]; k=k[torch.randperm(len(k),generator=torch.Generator().manual_seed(0))[:240]]
            s=draw(known_features([emoji_captions(T[i])[0] for i in k.tolist()]),g); rd=j.read(s); res[nm]=[round(v,3) for v in (rd==V[k]).float().mean(0).tolist()]
            if g==2.: grid([s[:16],as_floats(X[k[:16]]),s[16:32],as_floats(X[k[16:32]])],K+f'dn-{name}-{nm}.png')
        print(name,len(run['losses']),'steps',f"{(time.time()-t0)/60:.1f} min loss {np.mean(run['losses'][-300:]):.4f}",'g',g,res,flush=True)
    other=(TRAIN&V.isnan().all(1)).nonzero()[:,0]; other=other[torch.randperm(len(other),generator=torch.Generator().manual_seed(0))[:48]]
    s=draw(known_features([emoji_captions(T[i])[0] for i in other.tolist()]),2.); grid([s[:16],as_floats(X[other[:16]]),s[16:32],as_floats(X[other[16:32]])],K+f'dn-{name}-things.png')
    new=(~TRAIN&~OUT).nonzero()[:,0]; new=new[torch.randperm(len(new),generator=torch.Generator().manual_seed(0))[:48]]
    s=draw(known_features([emoji_captions(T[i])[0] for i in new.tolist()]),2.); grid([s[:16],as_floats(X[new[:16]]),s[16:32],as_floats(X[new[16:32]])],K+f'dn-{name}-new.png')
    print([emoji_captions(T[i])[0] for i in new.tolist()[:32]])
if __name__=='__main__':
    a=sys.argv[1:]
    kw={k:eval(v) for k,v in (s.split('=') for s in a if '=' in s)}; a=[s for s in a if '=' not in s]
    if a[0]=='judge': judge(**kw)
    if a[0]=='ae': ae(a[1],float(a[2]),**kw)
    if a[0]=='dn': dn(a[1],a[2],float(a[3]),**kw)
