// A threadgroup on one processor, included by metal_stdlib inside its namespace. Each thread is a fibre that gives way at
// barriers and at operations of its simdgroup, which has 32 threads. run.rs calls `run_..` of a text with a Call.
} // namespace metal
#define UNCHECKED __attribute__((disable_sanitizer_instrumentation))
// Names of the texts' own are outside.
namespace shim {
enum { THREADS_MAX = 1024, LANES = 32, BUFFERS_MAX = 32, SHARED_MAX = 16, MESSAGE_BYTES = 256 };
enum State { RUNS, AT_BARRIER, IN_SIMDGROUP, DONE };

// What a dispatch is: Rust has the same struct.
struct Call {
    uint groups[3];
    // Whether later threads run first, and whether denormal floats are zeros, as on Apple's GPUs.
    uint descending, flushes;
    // Buffers and threadgroup memory by slot, and their bytes; none where there is nothing.
    char *buffers[BUFFERS_MAX];
    ulong buffer_bytes[BUFFERS_MAX];
    char *shared[SHARED_MAX];
    ulong shared_bytes[SHARED_MAX];
    char *stacks;
    ulong stack_bytes;
    // Of the memory that buffers and threadgroup memory lie in, with gaps between them; a Shadow for each two bytes.
    char *arena;
    ulong arena_bytes;
    struct Shadow *shadows;
    char message[MESSAGE_BYTES];
};
// Who touched two bytes last: 1 + the number of a thread in the whole dispatch, and after how many barriers.
struct Shadow {
    uint writer, written_at, reader, read_at;
    // More than one thread read since.
    uint several;
};
struct Fibre { void *stack_pointer; State state; };
struct Machine {
    Call *call;
    Fibre fibres[THREADS_MAX];
    void *scheduler;
    uint current, group, failed;
    // Barriers so far, of threadgroup and of device memory.
    uint barriers, device_barriers;
    void (*thread_of)(uint);
    alignas(16) char slots[2][THREADS_MAX][16];
    uint writes[THREADS_MAX / LANES], reads[THREADS_MAX / LANES], takes_part[THREADS_MAX / LANES];
    uint range;
};
// Not static: a call that is not inlined may change it.
extern "C" { Machine shim_machine; }
static Machine &machine = shim_machine;

// Saves the registers that a callee must keep and the stack's pointer, and takes those of another stack.
__attribute__((naked, noinline)) UNCHECKED static void switch_stack(void **, void *) {
#if defined(__x86_64__)
    asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
#elif defined(__aarch64__)
    asm("sub sp, sp, #160\n stp x19, x20, [sp]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n"
        "stp x25, x26, [sp, #48]\n stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n stp d8, d9, [sp, #96]\n"
        "stp d10, d11, [sp, #112]\n stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"
        "mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
        "ldp x19, x20, [sp]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n ldp x25, x26, [sp, #48]\n"
        "ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n"
        "ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n add sp, sp, #160\n ret");
#else
#error "the stacks of this processor are unknown"
#endif
}
UNCHECKED static void give_way(State state) {
    machine.fibres[machine.current].state = state;
    switch_stack(&machine.fibres[machine.current].stack_pointer, machine.scheduler);
}
UNCHECKED static void start() {
    machine.thread_of(machine.current);
    give_way(DONE);
}
UNCHECKED static void *fresh_stack(char *top) {
    void **at = (void **)((ulong)top & ~15ul);
#if defined(__x86_64__)
    at -= 8;
    at[6] = (void *)start;
#else
    at -= 20;
    at[11] = (void *)start;
#endif
    return at;
}
UNCHECKED static void put_text(char *&to, const char *text) {
    while (*text && to < machine.call->message + MESSAGE_BYTES - 1) *to++ = *text++;
    *to = 0;
}
UNCHECKED static void put_number(char *&to, ulong n) {
    char digits[24], *at = digits + 23;
    *at = 0;
    do *--at = '0' + n % 10; while (n /= 10);
    put_text(to, at);
}
// The first thing that went wrong.
UNCHECKED static void fail(const char *what, ulong a, const char *middle, ulong b, const char *end) {
    if (machine.failed) return;
    machine.failed = 1;
    char *to = machine.call->message;
    put_text(to, what), put_number(to, a), put_text(to, middle), put_number(to, b), put_text(to, end);
}
UNCHECKED static void resume(uint i) {
    machine.current = i;
    switch_stack(&machine.scheduler, machine.fibres[i].stack_pointer);
}
// Runs the `n` threads of a simdgroup from `first` on until each is at a barrier or done.
UNCHECKED static void run_simdgroup(uint first, uint n) {
    uint g = first / LANES;
    for (;;) {
        uint waits = 0;
        for (uint k = 0; k < n; k++) {
            uint i = first + (machine.call->descending ? n - 1 - k : k);
            if (machine.fibres[i].state == RUNS) resume(i);
            if (machine.fibres[i].state == IN_SIMDGROUP) waits |= 1u << (i - first);
        }
        if (!waits) return;
        machine.takes_part[g] = waits;
        machine.reads[g] = machine.writes[g], machine.writes[g] ^= 1;
        __builtin_memset(machine.slots[machine.writes[g]][first], 0xff, 16 * LANES);
        for (uint i = first; i < first + n; i++)
            if (machine.fibres[i].state == IN_SIMDGROUP) machine.fibres[i].state = RUNS;
    }
}
// Runs `thread_of(i)` for each thread of a threadgroup.
UNCHECKED static void run_group(uint threads, void (*thread_of)(uint)) {
    machine.thread_of = thread_of;
    machine.barriers = machine.device_barriers = 0;
    for (uint s = 0; s < SHARED_MAX; s++)
        if (char *at = machine.call->shared[s]) __builtin_memset(at, 0xff, machine.call->shared_bytes[s]);
    for (uint i = 0; i < threads; i++) {
        machine.fibres[i].stack_pointer = fresh_stack(machine.call->stacks + (i + 1) * machine.call->stack_bytes);
        machine.fibres[i].state = RUNS;
    }
    uint simdgroups = (threads + LANES - 1) / LANES;
    while (!machine.failed) {
        uint done = 0;
        for (uint k = 0; k < simdgroups; k++) {
            uint first = LANES * (machine.call->descending ? simdgroups - 1 - k : k);
            run_simdgroup(first, threads - first < LANES ? threads - first : LANES);
        }
        for (uint i = 0; i < threads; i++) done += machine.fibres[i].state == DONE;
        if (done == threads) return;
        if (done) return fail("a barrier that ", threads - done, " of ", threads, " threads reach");
        for (uint i = 0; i < threads; i++) machine.fibres[i].state = RUNS;
        machine.barriers++;
    }
}
#if defined(__x86_64__)
UNCHECKED static ulong float_control() { return __builtin_ia32_stmxcsr(); }
UNCHECKED static void set_float_control(ulong to) { __builtin_ia32_ldmxcsr(uint(to)); }
static const ulong FLUSH = 0x8040;
#else
UNCHECKED static ulong float_control() { ulong v; asm volatile("mrs %0, fpcr" : "=r"(v)); return v; }
UNCHECKED static void set_float_control(ulong to) { asm volatile("msr fpcr, %0" ::"r"(to)); }
static const ulong FLUSH = 1 << 24;
#endif
UNCHECKED static int run_groups(Call *call, uint threads, void (*thread_of)(uint), uint *position) {
    machine.call = call;
    machine.failed = machine.group = 0;
    ulong before = float_control();
    if (call->flushes) set_float_control(before | FLUSH);
    for (uint z = 0; z < call->groups[2]; z++)
        for (uint y = 0; y < call->groups[1]; y++)
            for (uint x = 0; x < call->groups[0] && !machine.failed; x++, machine.group++) {
                position[0] = x, position[1] = y, position[2] = z;
                run_group(threads, thread_of);
            }
    set_float_control(before);
    return machine.failed;
}

// What -fsanitize=thread calls at each access of memory. Two accesses of one place race if one is a write, and no barrier
// lies between them; nothing lies between two threadgroups. What lies in a gap of the arena is out of bounds.
UNCHECKED static void touch(char *at, ulong bytes, bool writes) {
    Call *call = machine.call;
    if (!call || at < call->arena || at >= call->arena + call->arena_bytes) return;
    auto inside = [&](char *first, ulong size) { return first && at >= first && at + bytes <= first + size; };
    uint me = 1 + machine.group * THREADS_MAX + machine.current, slot = machine.range;
    auto found = [&](uint r) {
        return r < BUFFERS_MAX ? inside(call->buffers[r], call->buffer_bytes[r])
                               : inside(call->shared[r - BUFFERS_MAX], call->shared_bytes[r - BUFFERS_MAX]);
    };
    if (!found(slot))
        for (slot = 0; slot < BUFFERS_MAX + SHARED_MAX && !found(slot); slot++) {}
    if (slot == BUFFERS_MAX + SHARED_MAX)
        return fail(writes ? "a write out of bounds by thread " : "a read out of bounds by thread ", machine.current,
                    " of threadgroup ", machine.group, "");
    machine.range = slot;
    bool is_shared = slot >= BUFFERS_MAX;
    uint now = is_shared ? machine.barriers : machine.device_barriers;
    for (ulong unit = (at - call->arena) / 2; unit < (at - call->arena + bytes + 1) / 2; unit++) {
        Shadow &s = call->shadows[unit];
        auto collides = [&](uint who, uint when) {
            if (!who) return false;
            bool same_group = (who - 1) / THREADS_MAX == machine.group;
            return same_group ? when == now : !is_shared;
        };
        bool races = s.writer != me && collides(s.writer, s.written_at);
        if (writes) races |= (s.several || s.reader != me) && collides(s.reader, s.read_at);
        if (races)
            return fail(is_shared ? "a race in threadgroup memory " : "a race in buffer ",
                        is_shared ? slot - BUFFERS_MAX : slot, " at byte ",
                        at - (is_shared ? call->shared[slot - BUFFERS_MAX] : call->buffers[slot]), "");
        if (writes) s.writer = me, s.written_at = now;
        else {
            bool again = collides(s.reader, s.read_at);
            s.several = again && (s.several || s.reader != me);
            s.reader = me, s.read_at = now;
        }
    }
}
} // namespace shim
#define TOUCHES(N)                                                                             \
    UNCHECKED void __tsan_read##N(char *at) { shim::touch(at, N, false); }                           \
    UNCHECKED void __tsan_write##N(char *at) { shim::touch(at, N, true); }                           \
    UNCHECKED void __tsan_unaligned_read##N(char *at) { shim::touch(at, N, false); }                 \
    UNCHECKED void __tsan_unaligned_write##N(char *at) { shim::touch(at, N, true); }                 \
    UNCHECKED void __tsan_read_write##N(char *at) { shim::touch(at, N, false); shim::touch(at, N, true); } \
    UNCHECKED void __tsan_unaligned_read_write##N(char *at) { shim::touch(at, N, false); shim::touch(at, N, true); }
extern "C" {
TOUCHES(1) TOUCHES(2) TOUCHES(4) TOUCHES(8) TOUCHES(16)
UNCHECKED void __tsan_init() {}
UNCHECKED void __tsan_func_entry(void *) {}
UNCHECKED void __tsan_func_exit() {}
UNCHECKED void *__tsan_memcpy(char *to, char *from, ulong n) {
    shim::touch(from, n, false), shim::touch(to, n, true);
    return __builtin_memcpy(to, from, n);
}
UNCHECKED void *__tsan_memmove(char *to, char *from, ulong n) {
    shim::touch(from, n, false), shim::touch(to, n, true);
    return __builtin_memmove(to, from, n);
}
UNCHECKED void *__tsan_memset(char *to, int value, ulong n) {
    shim::touch(to, n, true);
    return __builtin_memset(to, value, n);
}
}

namespace metal {
using namespace shim;
UNCHECKED inline void threadgroup_barrier(mem_flags flags) {
    uint before = machine.device_barriers;
    give_way(AT_BARRIER);
    if (flags == mem_flags::mem_device) machine.device_barriers = before + 1;
}
UNCHECKED inline void simdgroup_barrier(mem_flags) { give_way(IN_SIMDGROUP); }

template <class T> UNCHECKED void put(T v) {
    static_assert(sizeof(T) <= 16, "a value of a simdgroup");
    uint g = machine.current / LANES;
    __builtin_memcpy(machine.slots[machine.writes[g]][machine.current], &v, sizeof(T));
    give_way(IN_SIMDGROUP);
}
// Of a lane that takes no part: 0xff in all bytes.
template <class T> UNCHECKED T of_lane(uint lane) {
    T v;
    uint g = machine.current / LANES;
    __builtin_memcpy(&v, machine.slots[machine.reads[g]][g * LANES + (lane & (LANES - 1))], sizeof(T));
    return v;
}
template <class T, class F> UNCHECKED T fold(T v, F f) {
    put(v);
    uint active = machine.takes_part[machine.current / LANES], lane = __builtin_ctz(active);
    T out = of_lane<T>(lane);
    while (++lane < LANES)
        if (active >> lane & 1) out = f(out, of_lane<T>(lane));
    return out;
}
template <class T> T simd_sum(T v) { return fold(v, [](T a, T b) { return a + b; }); }
template <class T> T simd_max(T v) { return fold(v, [](T a, T b) { return max(a, b); }); }
template <class T> T simd_min(T v) { return fold(v, [](T a, T b) { return min(a, b); }); }
template <class T> T simd_shuffle(T v, ushort lane) { put(v); return of_lane<T>(lane); }
template <class T> T simd_broadcast(T v, ushort lane) { put(v); return of_lane<T>(lane); }
template <class T> T simd_broadcast_first(T v) {
    put(v);
    return of_lane<T>(__builtin_ctz(machine.takes_part[machine.current / LANES]));
}
template <class T> T simd_shuffle_xor(T v, ushort mask) { put(v); return of_lane<T>(machine.current % LANES ^ mask); }

// Each lane holds all values, and stores its two of them. All lanes must take part; where they do not, values are NaN.
template <class T> struct simdgroup_matrix {
    T at[64];
    simdgroup_matrix() { __builtin_memset(at, 0xff, sizeof(at)); }
};
UNCHECKED inline bool whole_simdgroup() {
    give_way(IN_SIMDGROUP);
    bool whole = machine.takes_part[machine.current / LANES] == 0xffffffffu;
    if (!whole)
        fail("an operation on matrices without all of simdgroup ", machine.current / LANES, " of threadgroup ",
             machine.group, "");
    return whole;
}
inline ulong place(uint row, uint col, ulong stride, ulong2 origin, bool transposed) {
    return (origin[1] + (transposed ? col : row)) * stride + origin[0] + (transposed ? row : col);
}
template <class T>
void simdgroup_load(simdgroup_matrix<T> &m, const T *from, ulong stride, ulong2 origin, bool transposed) {
    if (!whole_simdgroup()) return;
    for (uint row = 0; row < 8; row++)
        for (uint col = 0; col < 8; col++)
            m.at[row * 8 + col] = from[place(row, col, stride, origin, transposed)];
}
template <class T>
void simdgroup_store(const simdgroup_matrix<T> &m, T *to, ulong stride, ulong2 origin = 0, bool transposed = false) {
    if (!whole_simdgroup()) return;
    for (uint i = machine.current % LANES * 2, end = i + 2; i < end; i++) {
        to[place(i / 8, i % 8, stride, origin, transposed)] = m.at[i];
    }
}
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(simdgroup_matrix<D> &d, const simdgroup_matrix<A> &a, const simdgroup_matrix<B> &b,
                                   const simdgroup_matrix<C> &c) {
    if (!whole_simdgroup()) return;
    for (uint row = 0; row < 8; row++)
        for (uint col = 0; col < 8; col++) {
            D sum = c.at[row * 8 + col];
            for (uint k = 0; k < 8; k++) sum += D(a.at[row * 8 + k]) * D(b.at[k * 8 + col]);
            d.at[row * 8 + col] = sum;
        }
}
