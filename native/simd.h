/* Which instruction set the kernels use: chosen once from the machine, lowered only by tests. */
#ifndef LAYERSTORE_SIMD_H
#define LAYERSTORE_SIMD_H

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define SIMD_X86 1
#else
#define SIMD_X86 0
#endif

enum simd_level { SIMD_PORTABLE, SIMD_AVX2, SIMD_AVX512 };

/* The level in use. Never above what this machine has. */
enum simd_level simd_level(void);

/* Lower (or restore) the level; returns -1 and changes nothing if the machine lacks it. For tests. */
int simd_set(enum simd_level level);

/* Whether AVX512-VBMI (byte permutes across a register) is there as well: the vector cut needs it. */
int simd_has_vbmi(void);

#endif
