/* layerstore._native: Python's view of the kernels, and the only file that includes Python.h.
 *
 * Buffers in, bytes out; the interpreter lock is released for the computation, so nothing is read twice
 * from a buffer that another thread might change if memory safety hangs on it (spans are copied first).
 * Same signatures, results and exceptions as layerstore/_pure.py; documented in layerstore/kernels.py.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "blake3.h"
#include "bytes.h"
#include "chunker.h"
#include "gear.h"
#include "gzip_recipe.h"
#include "scratch.h"
#include "simd.h"
#include "tarscan.h"

enum { ABI = 2, RULE_ARGS = 5, MODEL_ARGS = 3 };

/* Plain bytes behind a segment that a model looks at; room for the block that ends a segment. */
enum { SPLIT_AHEAD = 512, SPLIT_ROOM = 256 << 10 };

static const char *const LEVELS[] = {"portable", "avx2", "avx512"};

typedef struct {
    chunker_span *items;
    size_t count;
} span_list;

static int check_count(const char *name, Py_ssize_t got, Py_ssize_t want) {
    if (got == want) {
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "%s() takes %zd positional arguments but %zd were given", name, want,
                 got);
    return -1;
}

static int get_buffer(PyObject *object, Py_buffer *view) {
    if (PyObject_GetBuffer(object, view, PyBUF_FULL_RO)) {
        return -1;
    }
    if (!PyBuffer_IsContiguous(view, 'C')) {
        PyBuffer_Release(view);
        PyErr_SetString(PyExc_ValueError, "the buffer must be contiguous");
        return -1;
    }
    return 0;
}

/* Any integer; one that does not fit is given as the nearest, which no range check lets pass. */
static int get_integer(PyObject *object, long long *value) {
    int overflow;
    PyObject *integer = PyNumber_Index(object);
    if (!integer) {
        return -1;
    }
    *value = PyLong_AsLongLongAndOverflow(integer, &overflow);
    Py_DECREF(integer);
    if (overflow) {
        *value = overflow > 0 ? LLONG_MAX : LLONG_MIN;
    }
    return *value == -1 && PyErr_Occurred() ? -1 : 0;
}

static int get_rule(PyObject *const *args, cdc_rule *rule) {
    long long value[RULE_ARGS];
    for (int i = 0; i < RULE_ARGS; i++) {
        if (get_integer(args[i], &value[i])) {
            return -1;
        }
    }
    if (!(CDC_MIN_LIMIT <= value[0] && value[0] <= value[1] && value[1] <= value[2] &&
          value[2] <= CDC_MAX_LIMIT)) {
        PyErr_SetString(PyExc_ValueError,
                        "sizes must satisfy 64 <= min_size <= normal_size <= max_size <= 2**20");
        return -1;
    }
    if (!(1 <= value[4] && value[4] <= value[3] && value[3] <= 31)) {
        PyErr_SetString(PyExc_ValueError,
                        "bits must satisfy 1 <= loose_bits <= strict_bits <= 31");
        return -1;
    }
    *rule = (cdc_rule){
        .min = (size_t)value[0],
        .normal = (size_t)value[1],
        .max = (size_t)value[2],
        .strict = (uint32_t)1 << (32 - value[3]),
        .loose = (uint32_t)1 << (32 - value[4]),
    };
    return 0;
}

/* Checked copies, so that what was checked is what is used. Free items with PyMem_Free. */
static int get_spans(const Py_buffer *view, size_t size, span_list *spans) {
    if (view->len % 16) {
        PyErr_SetString(PyExc_ValueError,
                        "spans must be pairs of u64: its size must be a multiple of 16");
        return -1;
    }
    spans->count = (size_t)view->len / 16;
    spans->items = PyMem_Malloc((size_t)view->len + 1);
    if (!spans->items) {
        PyErr_NoMemory();
        return -1;
    }
    const uint8_t *pairs = view->buf;
    for (size_t i = 0; i < spans->count; i++) {
        chunker_span span = {load_le64(pairs + 16 * i), load_le64(pairs + 16 * i + 8)};
        if (span.offset > size || span.size > size - span.offset) {
            PyMem_Free(spans->items);
            PyErr_Format(PyExc_ValueError, "span %zu is not inside the data", i);
            return -1;
        }
        spans->items[i] = span;
    }
    return 0;
}

static PyObject *bytes_of(const uint8_t *data, size_t size) {
    return PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
}

static PyObject *cut_hash_views(const Py_buffer *data, const Py_buffer *pairs, PyObject *const *args) {
    cdc_rule rule;
    span_list spans;
    if (get_rule(args, &rule)) {
        return NULL;
    }
    int is_open = PyObject_IsTrue(args[RULE_ARGS]);
    if (is_open < 0 || get_spans(pairs, (size_t)data->len, &spans)) {
        return NULL;
    }
    PyObject *counts = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(spans.count * 4));
    PyObject *result = NULL;
    if (counts) {
        chunker_chunks chunks = {0};
        uint8_t *to = (uint8_t *)PyBytes_AS_STRING(counts);
        int failed;
        Py_BEGIN_ALLOW_THREADS
        failed = chunker_cut_hash(data->buf, spans.items, spans.count, &rule, is_open, to, &chunks);
        Py_END_ALLOW_THREADS
        if (failed) {
            PyErr_NoMemory();
        } else {
            PyObject *lengths = bytes_of(chunks.lengths, chunks.count * 4);
            PyObject *ids = bytes_of(chunks.ids, chunks.count * BLAKE3_SIZE);
            if (lengths && ids) {
                result = PyTuple_Pack(3, counts, lengths, ids);
            }
            Py_XDECREF(lengths);
            Py_XDECREF(ids);
        }
        chunker_free(&chunks);
        Py_DECREF(counts);
    }
    PyMem_Free(spans.items);
    return result;
}

static PyObject *cut_hash(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    Py_buffer data, pairs;
    if (check_count("cut_hash", count, 2 + RULE_ARGS + 1) || get_buffer(args[0], &data)) {
        return NULL;
    }
    PyObject *result = NULL;
    if (get_buffer(args[1], &pairs) == 0) {
        result = cut_hash_views(&data, &pairs, args + 2);
        PyBuffer_Release(&pairs);
    }
    PyBuffer_Release(&data);
    return result;
}

static PyObject *cut(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    Py_buffer data;
    cdc_rule rule;
    if (check_count("cut", count, 1 + RULE_ARGS) || get_buffer(args[0], &data)) {
        return NULL;
    }
    PyObject *result = NULL;
    if (get_rule(args + 1, &rule) == 0) {
        chunker_chunks chunks = {0};
        int failed;
        Py_BEGIN_ALLOW_THREADS
        failed = chunker_cut(data.buf, (size_t)data.len, &rule, &chunks);
        Py_END_ALLOW_THREADS
        result = failed ? PyErr_NoMemory() : bytes_of(chunks.lengths, chunks.count * 4);
        chunker_free(&chunks);
    }
    PyBuffer_Release(&data);
    return result;
}

/* BLAKE3 of every span. */
static PyObject *hash_spans(const uint8_t *data, const chunker_span *spans, size_t count) {
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * BLAKE3_SIZE));
    if (!result) {
        return NULL;
    }
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(result);
    blake3_batch *batch;
    Py_BEGIN_ALLOW_THREADS
    batch = blake3_batch_new();
    if (batch) {
        for (size_t i = 0; i < count; i++) {
            blake3_batch_add(batch, data + spans[i].offset, (size_t)spans[i].size,
                             out + i * BLAKE3_SIZE);
        }
        blake3_batch_flush(batch);
    }
    blake3_batch_free(batch);
    Py_END_ALLOW_THREADS
    if (!batch) {
        Py_DECREF(result);
        return PyErr_NoMemory();
    }
    return result;
}

static PyObject *hash_many(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    Py_buffer data, pairs;
    span_list spans;
    if (check_count("hash_many", count, 2) || get_buffer(args[0], &data)) {
        return NULL;
    }
    PyObject *result = NULL;
    if (get_buffer(args[1], &pairs) == 0) {
        if (get_spans(&pairs, (size_t)data.len, &spans) == 0) {
            result = hash_spans(data.buf, spans.items, spans.count);
            PyMem_Free(spans.items);
        }
        PyBuffer_Release(&pairs);
    }
    PyBuffer_Release(&data);
    return result;
}

static PyObject *blake3(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer data;
    if (get_buffer(object, &data)) {
        return NULL;
    }
    chunker_span whole = {0, (uint64_t)data.len};
    PyObject *result = hash_spans(data.buf, &whole, 1);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *scan_view(const Py_buffer *data, PyObject *offset) {
    long long at;
    if (get_integer(offset, &at)) {
        return NULL;
    }
    if (at < 0 || at > 1LL << 62) {
        PyErr_SetString(PyExc_ValueError, "offset must be between 0 and 2**62");
        return NULL;
    }
    size_t size = (size_t)data->len, count = 0;
    uint64_t next = (uint64_t)at;
    size_t room = size / 512 < TARSCAN_MAX_ROWS ? size / 512 : TARSCAN_MAX_ROWS;
    uint8_t *rows = PyMem_Malloc(room * TARSCAN_ROW + 1);
    if (!rows) {
        return PyErr_NoMemory();
    }
    enum tarscan_stop stop;
    Py_BEGIN_ALLOW_THREADS
    stop = tarscan(data->buf, size, &next, rows, room, &count);
    Py_END_ALLOW_THREADS
    PyObject *result = Py_BuildValue("y#Ki", rows, (Py_ssize_t)(count * TARSCAN_ROW),
                                     (unsigned long long)next, (int)stop);
    PyMem_Free(rows);
    return result;
}

static PyObject *tar_scan(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    Py_buffer data;
    if (check_count("tar_scan", count, 2) || get_buffer(args[0], &data)) {
        return NULL;
    }
    PyObject *result = scan_view(&data, args[1]);
    PyBuffer_Release(&data);
    return result;
}

/* An integer argument from 0 to `most`. */
static int get_bounded(PyObject *object, const char *name, long long most, uint64_t *value) {
    long long got;
    if (get_integer(object, &got)) {
        return -1;
    }
    if (got < 0 || got > most) {
        PyErr_Format(PyExc_ValueError, "%s must be between 0 and %lld", name, most);
        return -1;
    }
    *value = (uint64_t)got;
    return 0;
}

static int get_model(PyObject *const *args, model_choice *choice) {
    uint64_t family, level, block;
    if (get_bounded(args[0], "family", 255, &family) || get_bounded(args[1], "level", 255, &level) ||
        get_bounded(args[2], "block", 1 << 30, &block)) {
        return -1;
    }
    *choice = (model_choice){(uint8_t)family, (uint8_t)level, (uint32_t)block};
    if (!model_is_known(choice)) {
        PyErr_Format(PyExc_ValueError, "no model of family %d, level %d", choice->family, choice->level);
        return -1;
    }
    return 0;
}

/* Copies: what was checked is what is used. */
typedef struct {
    deflate_segment segment;
    model_choice choice;
    uint64_t position;
    unsigned state;
    uint8_t *recipe;
    size_t recipe_size;
} split_job;

static int get_split(PyObject *const *args, split_job *job, const Py_buffer *data,
                     const Py_buffer *history) {
    uint64_t bit, state, wanted;
    int is_last = PyObject_IsTrue(args[2]);
    if (is_last < 0 || get_bounded(args[1], "bit", (long long)data->len * 8, &bit) ||
        get_bounded(args[3], "state", 3, &state) ||
        get_bounded(args[5], "position", 1LL << 62, &job->position) ||
        get_bounded(args[6], "wanted", PARSE_MAX_PLAIN, &wanted) || get_model(args + 7, &job->choice)) {
        return -1;
    }
    if (history->len > PARSE_MAX_PLAIN) {
        PyErr_SetString(PyExc_ValueError, "the history is too long");
        return -1;
    }
    size_t before = (size_t)history->len;
    job->state = (unsigned)state;
    job->segment = (deflate_segment){
        .data = data->buf,
        .size = (size_t)data->len,
        .is_last = is_last,
        .bit = bit,
        .at_header = state & GZIP_AT_HEADER,
        .history = before,
        .floor = job->position < before ? before - (size_t)job->position : 0,
        .wanted = (size_t)wanted,
        .ahead = SPLIT_AHEAD,
    };
    return 0;
}

static enum deflate_parse_status run_split(split_job *job, const Py_buffer *history,
                                           const Py_buffer *header) {
    deflate_segment *segment = &job->segment;
    segment->plain = scratch_take(segment->history + segment->wanted + SPLIT_ROOM, &segment->plain_room);
    if (!segment->plain) {
        return PARSE_NO_MEMORY;
    }
    memcpy(segment->plain, history->buf, segment->history);
    enum deflate_parse_status status = deflate_parse(segment);
    if (status == PARSE_OK &&
        gzip_recipe_encode(segment, &job->choice, &job->position, &job->state, header->buf,
                           (size_t)header->len, &job->recipe, &job->recipe_size)) {
        status = PARSE_NO_MEMORY;
    }
    return status;
}

static PyObject *split_views(PyObject *const *args, const Py_buffer *data, const Py_buffer *history,
                             const Py_buffer *header) {
    split_job job = {0};
    if (get_split(args, &job, data, history)) {
        return NULL;
    }
    enum deflate_parse_status status;
    Py_BEGIN_ALLOW_THREADS
    status = run_split(&job, history, header);
    Py_END_ALLOW_THREADS
    const deflate_segment *segment = &job.segment;
    PyObject *result = NULL;
    if (status == PARSE_NO_MEMORY) {
        PyErr_NoMemory();
    } else if (status != PARSE_OK) {
        result = Py_BuildValue("iKIKy#ny#", (int)status, 0ULL, 0, 0ULL, "", (Py_ssize_t)0, (Py_ssize_t)0,
                               "", (Py_ssize_t)0);
    } else {
        result = Py_BuildValue("iKIKy#ny#", (int)status, (unsigned long long)segment->bit, job.state,
                               (unsigned long long)job.position, segment->plain + segment->history,
                               (Py_ssize_t)(segment->end - segment->history),
                               (Py_ssize_t)(segment->plain_size - segment->end),
                               job.recipe ? (const char *)job.recipe : "", (Py_ssize_t)job.recipe_size);
    }
    deflate_segment_free(&job.segment);
    free(job.recipe);
    return result;
}

static PyObject *gzip_split(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    Py_buffer data, history, header;
    if (check_count("gzip_split", count, 8 + MODEL_ARGS) || get_buffer(args[0], &data)) {
        return NULL;
    }
    PyObject *result = NULL;
    if (get_buffer(args[4], &history) == 0) {
        if (get_buffer(args[7 + MODEL_ARGS], &header) == 0) {
            result = split_views(args, &data, &history, &header);
            PyBuffer_Release(&header);
        }
        PyBuffer_Release(&history);
    }
    PyBuffer_Release(&data);
    return result;
}

static PyObject *join_views(PyObject *const *args, const Py_buffer *recipe, const Py_buffer *text,
                            const Py_buffer *header) {
    gzip_join job = {.text = {.data = text->buf, .size = (size_t)text->len},
                     .recipe = recipe->buf,
                     .recipe_size = (size_t)recipe->len,
                     .header = header->buf,
                     .header_size = (size_t)header->len};
    uint64_t start, end, position, first_bit, bit_size;
    long long size = text->len;
    if (get_bounded(args[2], "start", size, &start) || get_bounded(args[3], "end", size, &end) ||
        get_bounded(args[4], "position", 1LL << 62, &position) || get_model(args + 5, &job.choice) ||
        get_bounded(args[9], "first_bit", 7, &first_bit) ||
        get_bounded(args[10], "bit_size", 1LL << 40, &bit_size)) {
        return NULL;
    }
    if (start > end || size > 1 << 30) {
        PyErr_SetString(PyExc_ValueError, "start must not be behind end, nor the text over 1 GiB");
        return NULL;
    }
    job.text.start = (size_t)start;
    job.text.position = position;
    job.end = (size_t)end;
    job.first_bit = (unsigned)first_bit;
    job.bit_size = bit_size;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = gzip_recipe_join(&job);
    Py_END_ALLOW_THREADS
    if (failed == GZIP_JOIN_NO_MEMORY) {
        return PyErr_NoMemory();
    }
    if (failed) {
        PyErr_SetString(PyExc_ValueError, "the recipe does not belong to these bytes");
        return NULL;
    }
    PyObject *result = bytes_of(job.bytes, job.size);
    free(job.bytes);
    return result;
}

static PyObject *gzip_join_segment(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    Py_buffer recipe, text, header;
    if (check_count("gzip_join", count, 8 + MODEL_ARGS) || get_buffer(args[0], &recipe)) {
        return NULL;
    }
    PyObject *result = NULL;
    if (get_buffer(args[1], &text) == 0) {
        if (get_buffer(args[8], &header) == 0) {
            result = join_views(args, &recipe, &text, &header);
            PyBuffer_Release(&header);
        }
        PyBuffer_Release(&text);
    }
    PyBuffer_Release(&recipe);
    return result;
}

static PyObject *simd(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyUnicode_FromString(LEVELS[simd_level()]);
}

static PyObject *set_simd(PyObject *module, PyObject *name) {
    (void)module;
    const char *text = PyUnicode_AsUTF8(name);
    if (!text) {
        return NULL;
    }
    for (int level = SIMD_PORTABLE; level <= SIMD_AVX512; level++) {
        if (strcmp(text, LEVELS[level]) == 0 && simd_set((enum simd_level)level) == 0) {
            Py_RETURN_NONE;
        }
    }
    return PyErr_Format(PyExc_ValueError, "no instruction set %R on this machine", name);
}

static PyMethodDef methods[] = {
    {"cut_hash", (PyCFunction)(void (*)(void))cut_hash, METH_FASTCALL, NULL},
    {"cut", (PyCFunction)(void (*)(void))cut, METH_FASTCALL, NULL},
    {"hash_many", (PyCFunction)(void (*)(void))hash_many, METH_FASTCALL, NULL},
    {"blake3", blake3, METH_O, NULL},
    {"tar_scan", (PyCFunction)(void (*)(void))tar_scan, METH_FASTCALL, NULL},
    {"gzip_split", (PyCFunction)(void (*)(void))gzip_split, METH_FASTCALL, NULL},
    {"gzip_join", (PyCFunction)(void (*)(void))gzip_join_segment, METH_FASTCALL, NULL},
    {"simd", simd, METH_NOARGS, NULL},
    {"set_simd", set_simd, METH_O, "Lower or restore the instruction set, for the whole process; for tests."},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module) {
    if (PyModule_AddIntConstant(module, "ABI", ABI)) {
        return -1;
    }
    PyObject *table = PyTuple_New(256);
    if (!table) {
        return -1;
    }
    for (int i = 0; i < 256; i++) {
        PyObject *word = PyLong_FromUnsignedLong(GEAR[i]);
        if (!word) {
            Py_DECREF(table);
            return -1;
        }
        PyTuple_SET_ITEM(table, i, word);
    }
    int failed = PyModule_AddObjectRef(module, "GEAR", table);
    Py_DECREF(table);
    return failed;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)execute},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "layerstore._native",
    .m_doc = "The C kernels; use layerstore.kernels.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void) {
    return PyModuleDef_Init(&definition);
}
