"""What importing the package costs beyond importing torch: python bench/imports.py

Each line is the median of seven fresh processes, in seconds.
"""
import statistics, subprocess, sys

CODE = 'import time, torch; start = time.perf_counter(); import {}; print(time.perf_counter() - start)'
for module in 'ldm_nb.core', 'ldm_nb.training', 'ldm_nb.commands':
    times = [float(subprocess.run([sys.executable, '-c', CODE.format(module)], capture_output=True, text=True, check=True).stdout) for _ in range(7)]
    print(f'{module:20} {statistics.median(times):.3f} s beyond torch')
