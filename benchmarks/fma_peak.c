/* The machine's own limits: fused multiply-adds from registers alone. Compiled on the fly by bench_roofline.py.
 *
 * Twelve independent accumulators per width, enough for two units of four to five cycles each. In assembly, so that no compiler can hoist,
 * merge or spill them: a loop written with intrinsics was once seen to show half the peak. Values stay at 0: speed does not depend on them. */

#if defined(__x86_64__)

#define TWELVE(OP, R)                                                                                                      \
  OP " %%" R "12, %%" R "12, %%" R "0\n" OP " %%" R "12, %%" R "12, %%" R "1\n" OP " %%" R "12, %%" R "12, %%" R "2\n"      \
  OP " %%" R "12, %%" R "12, %%" R "3\n" OP " %%" R "12, %%" R "12, %%" R "4\n" OP " %%" R "12, %%" R "12, %%" R "5\n"      \
  OP " %%" R "12, %%" R "12, %%" R "6\n" OP " %%" R "12, %%" R "12, %%" R "7\n" OP " %%" R "12, %%" R "12, %%" R "8\n"      \
  OP " %%" R "12, %%" R "12, %%" R "9\n" OP " %%" R "12, %%" R "12, %%" R "10\n" OP " %%" R "12, %%" R "12, %%" R "11\n"

#define CLEAR(OP, R)                                                                                                       \
  OP " %%" R "0, %%" R "0, %%" R "0\n" OP " %%" R "1, %%" R "1, %%" R "1\n" OP " %%" R "2, %%" R "2, %%" R "2\n"            \
  OP " %%" R "3, %%" R "3, %%" R "3\n" OP " %%" R "4, %%" R "4, %%" R "4\n" OP " %%" R "5, %%" R "5, %%" R "5\n"            \
  OP " %%" R "6, %%" R "6, %%" R "6\n" OP " %%" R "7, %%" R "7, %%" R "7\n" OP " %%" R "8, %%" R "8, %%" R "8\n"            \
  OP " %%" R "9, %%" R "9, %%" R "9\n" OP " %%" R "10, %%" R "10, %%" R "10\n" OP " %%" R "11, %%" R "11, %%" R "11\n"      \
  OP " %%" R "12, %%" R "12, %%" R "12\n"

#define USED                                                                                                               \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "cc"

/* Each does `rounds` times 12 vector multiply-adds and returns the floating-point operations in that. */
double fma_avx512(long rounds) {
  long n = rounds;
  __asm__ volatile(CLEAR("vpxorq", "zmm") "1:\n" TWELVE("vfmadd231ps", "zmm") "dec %0\njnz 1b\nvzeroupper\n" : "+r"(n) : : USED);
  return (double)rounds * 12 * 16 * 2;
}

double fma_avx2(long rounds) {
  long n = rounds;
  __asm__ volatile(CLEAR("vxorps", "ymm") "1:\n" TWELVE("vfmadd231ps", "ymm") "dec %0\njnz 1b\nvzeroupper\n" : "+r"(n) : : USED);
  return (double)rounds * 12 * 8 * 2;
}

#endif
