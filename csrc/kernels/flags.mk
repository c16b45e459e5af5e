# Flags of the files that are compiled for one instruction set: spmv_avx2.c gets those of avx2, by the end
# of its name. Read by the Makefile and by setup.py. Where the compiler does not take an instruction set's
# flags (an older compiler, another processor), its files are left out; where it does, every file of the
# build sees GSP_HAVE_AVX2 (the name in capitals), so that the table of kernels knows what is there.
ISA_avx2 = -mavx2 -mfma
ISA_avx512 = -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma
ISA_avx512bf16 = -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512bf16 -mavx2 -mfma
ISA_amx = -mamx-tile -mamx-bf16 -mamx-int8 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi2 -mavx2 -mfma -mpopcnt
ISA_avx512vnni = -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vnni -mavx2 -mfma
# What every 64-bit Arm CPU has. The last word is one that compilers for 32-bit Arm refuse: they do not get these files.
ISA_neon = -march=armv8-a+nosve
