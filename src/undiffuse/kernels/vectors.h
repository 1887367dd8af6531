/* Sixteen numbers at once, from and to float32 and bfloat16. */

#ifndef UNDIFFUSE_VECTORS_H
#define UNDIFFUSE_VECTORS_H

#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define W 16 /* numbers worked on at once; channels are a multiple of it */
#define ALWAYS static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));

ALWAYS vf all(float value) { return (vf){0} + value; }

ALWAYS vf choose(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }

/* x between -most and most; NaN stays. */
ALWAYS vf clamp(vf x, float most)
{
#ifdef __AVX512F__ /* of two numbers one of which is not a number, the instructions return the second */
    return (vf)_mm512_min_ps((__m512)all(most), _mm512_max_ps((__m512)all(-most), (__m512)x));
#else
    x = choose(x < -most, all(-most), x);
    return choose(x > most, all(most), x);
#endif
}

ALWAYS vf load_f32(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }

ALWAYS void store_f32(float *p, vf v) { memcpy(p, &v, sizeof v); }

#if defined(__AVX512F__) && defined(__AVX512BF16__)
ALWAYS vf load_bf16(const uint16_t *p)
{
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}

ALWAYS void store_bf16(uint16_t *p, vf v) { _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v)); }
#else
ALWAYS vf load_bf16(const uint16_t *p)
{
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}

ALWAYS void store_bf16(uint16_t *p, vf v)
{
    vu u = (vu)v;
    vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16; /* to nearest, ties to even */
    vu quiet = (u >> 16) | 0x40;                       /* rounding could turn NaN into infinity */
    vu mask = (vu)(v != v);
    vh h = __builtin_convertvector((quiet & mask) | (rounded & ~mask), vh);
    memcpy(p, &h, sizeof h);
}
#endif

#endif
