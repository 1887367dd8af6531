/* 3x3 convolutions of stride 1 and padding 1, their gradients, 1x1 convolutions, and attention without gradients, in
   bfloat16 on the matrix unit of recent Intel processors (AMX): direct sums, 16 x 16 results at a time, in float32.

   x, y and base are channels-last, [batch][height][width][channels]; channels are multiples of N. y = conv(x) + bias +
   base, the last two where they are given.

   A tile takes 16 pixels that follow one another in an image. Images are copied into positions so that what a tap of
   the filter meets is one offset away for all of them:
   - If lines are made of whole tiles, the copy has a zero before each line and a line of zeros before and after each
     image: pixel (i, j) of image b is at position (b (height + 1) + 1 + i) (width + 1) + 1 + j.
   - Else there are three copies, of each pixel's left neighbour, of the pixel, and of its right neighbour, only with
     lines of zeros: at (b (height + 1) + 1 + i) width + j.

   A sum is made by one thread in one order, whatever the number of threads and the other pixels. */

#include "vectors.h"

#if !defined(UNDIFFUSE_NO_TILES) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)

#include <sys/syscall.h>
#include <unistd.h>

#define N 32      /* positions and results of a block: two tiles each; channels that a tile takes */
#define TILE 512  /* bfloat16 numbers of a tile */
#define NEAR 262144 /* numbers of an input that are read again from a near cache: half a megabyte */
#define CHUNK 1024 /* positions that are laid out at a time for the gradient of the weights */
#define PART 256   /* and positions that are read again for three taps from the nearest cache */

int omp_get_thread_num(void);
int omp_get_num_threads(void);

/* Asks the kernel of the system for the right to use the tiles; 0 if it is granted. */
int undiffuse_tiles_refused(void)
{
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* the tiles */) != 0;
}

/* Eight tiles of 16 rows of 64 bytes. */
ALWAYS void begin(void)
{
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } config
        __attribute__((aligned(64)));
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int k = 0; k < 8; k++) config.bytes[k] = 64, config.rows[k] = 16;
    _tile_loadconfig(&config);
}

/* Numbers between positions: an odd multiple of 64 bytes for many channels, so that tiles meet all parts of the cache. */
static int64_t pitch_of(int64_t channels) { return channels % 128 ? channels : channels + 32; }

/* How images are copied for a convolution. */
typedef struct {
    int64_t height, width, channels, pitch; /* numbers between positions */
    int64_t lines, line;                    /* and positions of a line */
    int64_t copies, plane;                  /* and positions of a copy */
} layout_t;

static layout_t layout_of(int64_t batch, int64_t height, int64_t width, int64_t channels)
{
    layout_t to = {height, width, channels, pitch_of(channels), batch * (height + 1) + 1, 0, 0, 0};
    to.copies = width % 16 ? 3 : 1;
    to.line = width + (to.copies == 1);
    to.plane = to.lines * to.line + 16;
    return to;
}

/* Floats that a convolution works in. */
int64_t undiffuse_tiles_space(int64_t batch, int64_t height, int64_t width, int64_t cin)
{
    layout_t to = layout_of(batch, height, width, cin);
    return to.copies * to.plane * to.pitch / 2;
}

/* Line `k` of all copies: one of an image, or of zeros. */
static void copy_line(const uint16_t *x, uint16_t *copy, int64_t k, const layout_t *to)
{
    int64_t image = (k - 1) / (to->height + 1), i = (k - 1) % (to->height + 1), width = to->width, pitch = to->pitch;
    size_t size = to->channels * sizeof *x;
    x += (image * to->height + i) * width * to->channels;
    copy += k * to->line * pitch;
    for (int64_t n = 0; n < to->copies; n++, copy += to->plane * pitch) {
        if (k == 0 || i == to->height) {
            /* After the last line is what the last tiles read beyond. */
            memset(copy, 0, (to->line + (k == to->lines - 1 ? 16 : 0)) * pitch * sizeof *copy);
            continue;
        }
        int64_t right = to->copies == 1 ? 1 : 1 - n; /* by how many positions pixels move */
        for (int64_t p = 0; p < to->line; p++) {
            int64_t j = p - right;
            if (j < 0 || j >= width) memset(copy + p * pitch, 0, size);
            else memcpy(copy + p * pitch, x + j * to->channels, size);
        }
    }
}

/* Sums in the tiles: over taps, twice 16 rows [cin], `pitch` apart, at the tap's offset times w [taps][cin][N]. */
ALWAYS void multiply(const uint16_t *a, const uint16_t *b, int64_t pitch, const int64_t *offsets, int taps, int64_t cin,
                     const uint16_t *w)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int tap = 0; tap < taps; tap++) {
        const uint16_t *p = a + offsets[tap], *q = b + offsets[tap];
        for (int64_t k = 0; k < cin; k += N, w += 2 * TILE) {
            _tile_loadd(4, p + k, 2 * pitch);
            _tile_loadd(6, w, 64);
            _tile_loadd(7, w + TILE, 64);
            _tile_loadd(5, q + k, 2 * pitch);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    __asm__ volatile("" ::: "memory");
}

/* c [N][N] = the sums in the tiles. */
ALWAYS void keep(float *c)
{
    _tile_stored(0, c, 4 * N);
    _tile_stored(1, c + 16, 4 * N);
    _tile_stored(2, c + 16 * N, 4 * N);
    _tile_stored(3, c + 16 * N + 16, 4 * N);
    __asm__ volatile("" ::: "memory");
}

/* Rows of y, `cout` apart, from rows of c. */
ALWAYS void put(const float *c, uint16_t *y, int64_t cout, const float *bias, const uint16_t *base, int64_t rows)
{
    __m512 left = _mm512_setzero_ps(), right = left;
    if (bias) left = _mm512_loadu_ps(bias), right = _mm512_loadu_ps(bias + W);
    for (int64_t r = 0; r < rows; r++, c += N, y += cout) {
        __m512 one = _mm512_add_ps(_mm512_loadu_ps(c), left), two = _mm512_add_ps(_mm512_loadu_ps(c + W), right);
        if (base) {
            one = _mm512_add_ps(one, (__m512)load_bf16(base));
            two = _mm512_add_ps(two, (__m512)load_bf16(base + W));
            base += cout;
        }
        _mm512_storeu_si512(y, (__m512i)_mm512_cvtne2ps_pbh(two, one));
    }
}

/* The items of a thread, of `count`: the first and what follows the last. */
ALWAYS int64_t share(int64_t count, int thread, int team) { return count * thread / team; }

/* What results are put into: of an image so many pixels and tiles, so many tiles in all. */
typedef struct {
    uint16_t *y;
    const float *bias;
    const uint16_t *base;
    int64_t pixels, each, all, cout;
} results_t;

/* Columns n to n + N of tiles t and t + 1. */
ALWAYS void put_tiles(const results_t *to, const float *c, int64_t t, int64_t n)
{
    for (int64_t k = 0; k < 2 && t < to->all; k++, t++, c += 16 * N) {
        int64_t p = t % to->each * 16, at = (t / to->each * to->pixels + p) * to->cout + n;
        put(c, to->y + at, to->cout, to->bias ? to->bias + n : 0, to->base ? to->base + at : 0,
            to->pixels - p < 16 ? to->pixels - p : 16);
    }
}

/* w: [cout / N][9][cin / N] pairs of tiles, see `undiffuse_tiles_pack`; work: `undiffuse_tiles_space` floats. */
void undiffuse_tiles_convolution(const uint16_t *x, uint16_t *y, const uint16_t *w, const float *bias,
                                 const uint16_t *base, float *work, int64_t batch, int64_t height, int64_t width,
                                 int64_t cin, int64_t cout, int threads)
{
    layout_t layout = layout_of(batch, height, width, cin);
    int64_t pixels = height * width, each = (pixels + 15) / 16, all = batch * each, pitch = layout.pitch, offsets[9];
    int64_t blocks = (all + 1) / 2, panels = cout / N;
    results_t results = {y, bias, base, pixels, each, all, cout};
    uint16_t *copy = (uint16_t *)work;
    for (int k = 0; k < 9; k++)
        offsets[k] = (k / 3 * layout.line + k % 3 * (layout.copies == 1 ? 1 : layout.plane)) * pitch;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t k = 0; k < layout.lines; k++) copy_line(x, copy, k, &layout);
        begin();
        /* Results are put where they belong while the next ones are computed. */
        float c[2][N * N] __attribute__((aligned(64)));
        int thread = omp_get_thread_num(), team = omp_get_num_threads(); /* may be fewer than wanted */
        int by_blocks = blocks >= 4 * team || blocks >= panels, number = 0;
        int64_t start = by_blocks ? share(blocks, thread, team) : 0;
        int64_t end = by_blocks ? share(blocks, thread + 1, team) : blocks;
        int64_t from = by_blocks ? 0 : share(panels, thread, team) * N;
        int64_t to = by_blocks ? cout : share(panels, thread + 1, team) * N;
        int64_t many = NEAR / (N * cin) > 4 ? NEAR / (N * cin) : 4, before = -1, column = 0;
        for (int64_t chunk = start; chunk < end; chunk += many)
            for (int64_t n = from; n < to; n += N)
                for (int64_t k = chunk; k < end && k < chunk + many; k++) {
                    const uint16_t *rows[2];
                    for (int64_t half = 0; half < 2; half++) { /* of an odd number the last tile twice */
                        int64_t t = 2 * k + half < all ? 2 * k + half : all - 1, p = t % each * 16;
                        if (layout.copies == 1) p += p / width;
                        rows[half] = copy + (t / each * (height + 1) * layout.line + p) * pitch;
                    }
                    multiply(rows[0], rows[1], pitch, offsets, 9, cin, w + n * 9 * cin);
                    if (before >= 0) put_tiles(&results, c[number & 1], 2 * before, column);
                    keep(c[++number & 1]);
                    before = k, column = n;
                }
        _tile_release();
        if (before >= 0) put_tiles(&results, c[number & 1], 2 * before, column);
    }
}

/* y [rows][cout] = x [rows][cin] w + bias + base; at least N rows. w: [cout / N][cin / N] pairs of tiles. */
void undiffuse_tiles_product(const uint16_t *x, uint16_t *y, const uint16_t *w, const float *bias,
                             const uint16_t *base, int64_t rows, int64_t cin, int64_t cout, int threads)
{
    int64_t blocks = (rows + N - 1) / N, panels = cout / N, offset = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        begin();
        float c[2][N * N] __attribute__((aligned(64)));
        int thread = omp_get_thread_num(), team = omp_get_num_threads(); /* may be fewer than wanted */
        int by_blocks = blocks >= 4 * team || blocks >= panels;
        int64_t start = by_blocks ? share(blocks, thread, team) : 0;
        int64_t many = by_blocks ? share(blocks, thread + 1, team) - start : blocks;
        int64_t first = by_blocks ? 0 : share(panels, thread, team) * many, before = -1, n = 0;
        int64_t last = by_blocks ? panels * many : share(panels, thread + 1, team) * many;
        for (int64_t item = first; item <= last && first < last; item++) {
            /* The last rows together with some before them: once more, to the same numbers. */
            int64_t r = (start + item % many) * N, from = r + N <= rows ? r : rows - N, at = before * cout + n;
            if (item < last)
                multiply(x + from * cin, x + (from + 16) * cin, cin, &offset, 1, cin, w + item / many * N * cin);
            if (item > first) put(c[~item & 1], y + at, cout, bias ? bias + n : 0, base ? base + at : 0, N);
            if (item < last) keep(c[item & 1]);
            before = from, n = item / many * N;
        }
        _tile_release();
    }
}

/* Transposes 16 x 16 numbers of 32 bits. */
ALWAYS void transpose(__m512i r[16])
{
    __m512i t[16];
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]), b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]), d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c), t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d), t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i a = _mm512_shuffle_i32x4(t[j], t[4 + j], 0x88), b = _mm512_shuffle_i32x4(t[j], t[4 + j], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0x88), d = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0xdd);
        r[j] = _mm512_shuffle_i32x4(a, c, 0x88), r[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        r[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd), r[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

/* Two rows of 16 numbers side by side, in pairs. */
ALWAYS __m512i paired(const uint16_t *first, const uint16_t *second)
{
    __m512i low = first ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)first)) : _mm512_setzero_si512();
    __m512i high = second ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)second)) : _mm512_setzero_si512();
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/* Lays weights out: packed [cout / N][taps][cin / N][2][16][16][2] of w, whose numbers for the next result, input and
   tap are so many numbers apart; taps are in reverse order for a negative distance, w is at the first of them then. */
void undiffuse_tiles_pack(const uint16_t *w, uint16_t *packed, int64_t cin, int64_t cout, int64_t taps, int64_t by_out,
                          int64_t by_in, int64_t by_tap, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t item = 0; item < cout / N * taps; item++) {
        int64_t n = item / taps * N, tap = item % taps;
        uint16_t *to = packed + item * cin * N;
        for (int64_t k = 0; k < cin; k += N)
            for (int64_t half = 0; half < N; half += 16, to += TILE) {
                const uint16_t *from = w + tap * by_tap + (n + half) * by_out + k * by_in;
                __m512i r[16];
                if (by_in == 1) {
                    for (int c = 0; c < 16; c++) r[c] = _mm512_loadu_si512(from + c * by_out);
                    transpose(r);
                    for (int c = 0; c < 16; c++) _mm512_storeu_si512(to + 32 * c, r[c]);
                } else if (by_out == 1) {
                    for (int c = 0; c < 16; c++)
                        _mm512_storeu_si512(to + 32 * c, paired(from + 2 * c * by_in, from + (2 * c + 1) * by_in));
                } else {
                    for (int64_t c = 0; c < TILE; c++)
                        to[c] = from[c / 2 % 16 * by_out + (c / 32 * 2 + c % 2) * by_in];
                }
            }
    }
}

/* The pixel at a position, or null where there is a zero. */
ALWAYS const uint16_t *pixel(const uint16_t *x, int64_t p, int64_t batch, int64_t height, int64_t width,
                             int64_t channels)
{
    int64_t line = p / (width + 1) - 1, j = p % (width + 1) - 1;
    if (line < 0 || j < 0) return 0;
    int64_t image = line / (height + 1), i = line % (height + 1);
    return image < batch && i < height ? x + ((image * height + i) * width + j) * channels : 0;
}

/* Numbers of a row of a chunk of the transposed x: its positions, and those that taps reach. */
static int64_t reach(int64_t width) { return (CHUNK + 2 * (width + 1) + 2 + 31) / 32 * 32 + 32; }

/* sum [N][N], rows `cout` apart, += the sum over positions of a [N][positions], rows `row` apart, times b in pairs. */
ALWAYS void outer(const uint16_t *a, int64_t row, const uint16_t *b, int64_t cout, float *sum, int64_t positions)
{
    __asm__ volatile("" ::: "memory");
    _tile_loadd(0, sum, 4 * cout);
    _tile_loadd(1, sum + 16, 4 * cout);
    _tile_loadd(2, sum + 16 * cout, 4 * cout);
    _tile_loadd(3, sum + 16 * cout + 16, 4 * cout);
    for (int64_t p = 0; p < positions; p += N) {
        _tile_loadd(4, a + p, 2 * row);
        _tile_loadd(6, b + p * cout, 4 * cout);
        _tile_loadd(7, b + p * cout + N, 4 * cout);
        _tile_loadd(5, a + 16 * row + p, 2 * row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sum, 4 * cout);
    _tile_stored(1, sum + 16, 4 * cout);
    _tile_stored(2, sum + 16 * cout, 4 * cout);
    _tile_stored(3, sum + 16 * cout + 16, 4 * cout);
}

/* Floats that the gradient of the weights works in. */
int64_t undiffuse_tiles_weights_space(int64_t width, int64_t cin, int64_t cout)
{
    return 9 * cin * cout + (reach(width) * cin + CHUNK * cout) / 2;
}

/* dw [9][cin][cout] and db [cout] in float32; work: `undiffuse_tiles_weights_space` floats.

   The positions of dy are those of x without what lies before the first pixel, so that tap (k, l) of the position p is
   the x at p + k (width + 1) + l. Where x has zeros between images, dy has zeros too. */
void undiffuse_tiles_weights(const uint16_t *x, const uint16_t *dy, float *dw, float *db, float *work, int64_t batch,
                             int64_t height, int64_t width, int64_t cin, int64_t cout, int threads)
{
    int64_t line = width + 1, count = (batch * (height + 1) - 1) * line, row = reach(width);
    uint16_t *xs = (uint16_t *)(work + 9 * cin * cout), *ys = xs + row * cin; /* [cin][row], [CHUNK / 2][cout][2] */
    memset(db, 0, cout * sizeof *db);
    memset(work, 0, 9 * cin * cout * sizeof *work);
#pragma omp parallel num_threads(threads)
    {
        begin();
        for (int64_t from = 0; from < count; from += CHUNK) {
            int64_t length = count - from < CHUNK ? (count - from + N - 1) / N * N : CHUNK;
            int64_t reached = (length + 2 * line + 2 + N - 1) / N * N;
#pragma omp for schedule(static)
            for (int64_t p = 0; p < reached; p += N) {
                const uint16_t *at[N];
                for (int k = 0; k < N; k++) at[k] = pixel(x, from + p + k, batch, height, width, cin);
                for (int64_t c = 0; c < cin; c += 16) {
                    __m512i r[16];
                    for (int k = 0; k < N; k += 2)
                        r[k / 2] = paired(at[k] ? at[k] + c : 0, at[k + 1] ? at[k + 1] + c : 0);
                    transpose(r);
                    for (int k = 0; k < 16; k++) _mm512_storeu_si512(xs + (c + k) * row + p, r[k]);
                }
            }
#pragma omp for schedule(static)
            for (int64_t p = 0; p < length; p += 2) {
                const uint16_t *a = pixel(dy, from + p + line + 1, batch, height, width, cout);
                const uint16_t *b = pixel(dy, from + p + line + 2, batch, height, width, cout);
                for (int64_t c = 0; c < cout; c += 16)
                    _mm512_storeu_si512(ys + p * cout + 2 * c, paired(a ? a + c : a, b ? b + c : b));
            }
#pragma omp for schedule(static)
            for (int64_t item = 0; item < cin / N * (cout / N) * 3; item++) {
                int64_t k = item % 3, n = item / 3 % (cout / N) * N, c = item / 3 / (cout / N) * N;
                if (k == 0 && c == 0)
                    for (int64_t m = n; m < n + N; m += 16) {
                        vf total = load_f32(db + m);
                        for (int64_t p = 0; p < length; p += 2) {
                            vu pair;
                            memcpy(&pair, ys + p * cout + 2 * m, sizeof pair);
                            total += (vf)(pair << 16);
                            total += (vf)(pair & 0xffff0000);
                        }
                        store_f32(db + m, total);
                    }
                for (int64_t p = 0; p < length; p += PART)
                    for (int64_t tap = 3 * k; tap < 3 * k + 3; tap++)
                        outer(xs + c * row + tap / 3 * line + tap % 3 + p, row, ys + p * cout + 2 * n, cout,
                              work + (tap * cin + c) * cout + n, length - p < PART ? length - p : PART);
            }
        }
        _tile_release();
    }
    memcpy(dw, work, 9 * cin * cout * sizeof *dw);
}

/* Floats that attention works in: of a thread the scores of N queries, their exponentials, and keys and values in pairs. */
int64_t undiffuse_tiles_attention_space(int64_t length, int64_t width, int threads)
{
    return threads * (N * length + N * length / 2 + length * width);
}

/* Keys [length][width], rows `stride` apart, as [length / 16][width / N] tiles of pairs along the width. */
static void pair_keys(const uint16_t *k, uint16_t *to, int64_t stride, int64_t length, int64_t width)
{
    for (int64_t j = 0; j < length; j += 16)
        for (int64_t d = 0; d < width; d += N, to += TILE) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(k + (j + i) * stride + d);
            transpose(r);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + 32 * i, r[i]);
        }
}

/* Values [length][width] as [width / N][length / N] twice tiles of pairs along the length. */
static void pair_values(const uint16_t *v, uint16_t *to, int64_t stride, int64_t length, int64_t width)
{
    for (int64_t d = 0; d < width; d += N)
        for (int64_t j = 0; j < length; j += N)
            for (int64_t half = 0; half < N; half += 16, to += TILE)
                for (int64_t i = 0; i < 16; i++) {
                    const uint16_t *at = v + (j + 2 * i) * stride + d + half;
                    _mm512_storeu_si512(to + 32 * i, paired(at, at + stride));
                }
}

/* y [batch][length][heads][width] = softmax(scale q k^T) v. q, k, v: rows of a head `stride` numbers apart, of heads and
   images `by_head` and `by_image`; length and width are multiples of N. Scores, exponentials and sums are float32, the
   exponentials are rounded to bfloat16 for their products with v. */
void undiffuse_tiles_attention(const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *y, float *work,
                               int64_t batch, int64_t heads, int64_t length, int64_t width, int64_t by_image,
                               int64_t by_head, int64_t stride, float scale, int threads)
{
    int64_t blocks = length / N, parts = batch * heads >= threads ? 1 : (threads + batch * heads - 1) / (batch * heads);
    if (parts > blocks) parts = blocks;
#pragma omp parallel num_threads(threads)
    {
        float *scores = work + omp_get_thread_num() * (N * length + N * length / 2 + length * width);
        uint16_t *powers = (uint16_t *)(scores + N * length), *keys = powers + N * length, *values = keys + length * width;
        begin();
#pragma omp for schedule(static)
        for (int64_t item = 0; item < batch * heads * parts; item++) {
            int64_t image = item / parts / heads, head = item / parts % heads, part = item % parts;
            int64_t at = image * by_image + head * by_head;
            pair_keys(k + at, keys, stride, length, width);
            pair_values(v + at, values, stride, length, width);
            for (int64_t i = part * blocks / parts * N; i < (part + 1) * blocks / parts * N; i += N) {
                const uint16_t *rows = q + at + i * stride;
                for (int64_t j = 0; j < length; j += N) {
                    __asm__ volatile("" ::: "memory");
                    _tile_zero(0);
                    _tile_zero(1);
                    _tile_zero(2);
                    _tile_zero(3);
                    for (int64_t d = 0; d < width; d += N) {
                        _tile_loadd(4, rows + d, 2 * stride);
                        _tile_loadd(5, rows + 16 * stride + d, 2 * stride);
                        _tile_loadd(6, keys + j * width + d * 16, 64);
                        _tile_loadd(7, keys + (j + 16) * width + d * 16, 64);
                        _tile_dpbf16ps(0, 4, 6);
                        _tile_dpbf16ps(1, 4, 7);
                        _tile_dpbf16ps(2, 5, 6);
                        _tile_dpbf16ps(3, 5, 7);
                    }
                    _tile_stored(0, scores + j, 4 * length);
                    _tile_stored(1, scores + j + 16, 4 * length);
                    _tile_stored(2, scores + 16 * length + j, 4 * length);
                    _tile_stored(3, scores + 16 * length + j + 16, 4 * length);
                }
                float shares[N];
                for (int64_t r = 0; r < N; r++) {
                    const float *s = scores + r * length;
                    uint16_t *p = powers + r * length;
                    __m512 most = _mm512_loadu_ps(s), sum = _mm512_setzero_ps(), next = sum;
                    for (int64_t j = W; j < length; j += W) most = _mm512_max_ps(_mm512_loadu_ps(s + j), most);
                    float largest = _mm512_reduce_max_ps(most);
                    for (int64_t j = 0; j < length; j += N) {
                        vf one = exp_minus((largest - load_f32(s + j)) * scale, 1);
                        vf two = exp_minus((largest - load_f32(s + j + W)) * scale, 1);
                        sum = _mm512_add_ps(sum, (__m512)one), next = _mm512_add_ps(next, (__m512)two);
                        _mm512_storeu_si512(p + j, (__m512i)_mm512_cvtne2ps_pbh((__m512)two, (__m512)one));
                    }
                    shares[r] = 1.0f / _mm512_reduce_add_ps(_mm512_add_ps(sum, next));
                }
                for (int64_t d = 0; d < width; d += N) {
                    float c[N * N] __attribute__((aligned(64)));
                    int64_t none = 0;
                    __asm__ volatile("" ::: "memory");
                    multiply(powers, powers + 16 * length, length, &none, 1, length, values + d * length);
                    keep(c);
                    for (int64_t r = 0; r < N; r++) {
                        uint16_t *to = y + ((image * length + i + r) * heads + head) * width + d;
                        vf one = load_f32(c + r * N) * shares[r], two = load_f32(c + r * N + W) * shares[r];
                        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)two, (__m512)one));
                    }
                }
            }
        }
        _tile_release();
    }
}

#endif
