/* Sixteen numbers at once, from and to float32 and bfloat16, and their exponential. */

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

/* exp(-z), by a polynomial on [-ln 2 / 2, ln 2 / 2]; to about 1e-7, or 1e-4 if `rough`. */
ALWAYS vf exp_minus(vf z, int rough)
{
    vf x = clamp(-z, 87.0f);
    vf n = x * 1.44269504f + 12582912.0f; /* adding 1.5 2^23 rounds to a whole number, left in the lowest bits */
    vi whole = (vi)n - 0x4b400000;
    n -= 12582912.0f;
    vf r = x - n * 0.693359375f, p;
    r += n * 2.12194440e-4f;
    if (rough) {
        p = (all(0.5049633f) + r * 0.1678490f) * r * r + r + 1.0f;
    } else {
        p = all(1.3981999507e-3f) + r * 1.9875691500e-4f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * r * r + r + 1.0f;
    }
    return p * (vf)((whole + 127) << 23);
}

#endif
