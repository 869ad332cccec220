// out[r] = the column of the greatest of x[r], the lowest of equals, as a float; -1 if one of them is infinite or no number.
// A workgroup a row. By bits, since a compiler may assume that a float is a finite number.

struct Params {
    cols: u32,
    rows: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

// Values that a thread has on their way at a time.
const EACH = 16u;
// A key that sorts as its float does, greater than that of anything finite.
const NO_NUMBER = 0xffffffffu;

// The greatest key of each thread, and its column.
var<workgroup> best: array<vec2<u32>, THREADS>;

fn key(bits: u32) -> u32 {
    if (bits & 0x7f800000u) == 0x7f800000u {
        return NO_NUMBER;
    }
    // Both zeros are the same number.
    let number = select(bits, 0u, bits == 0x80000000u);
    return select(number | 0x80000000u, ~number, number >= 0x80000000u);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let row = folded(group);
    if row >= p.rows {
        return;
    }
    var values: array<u32, EACH>;
    var most = vec2<u32>();
    for (var first = t; first < p.cols; first += EACH * THREADS) {
        for (var e = 0u; e < EACH; e++) {
            // The last value again, where there is none.
            values[e] = x[row * p.cols + min(first + e * THREADS, p.cols - 1u)];
        }
        for (var e = 0u; e < EACH; e++) {
            let k = key(values[e]);
            if k > most.x {
                most = vec2<u32>(k, min(first + e * THREADS, p.cols - 1u));
            }
        }
    }
    best[t] = most;
    workgroupBarrier();
    for (var step = THREADS / 2u; step > 0u; step >>= 1u) {
        if t < step {
            let other = best[t + step];
            if other.x > best[t].x || (other.x == best[t].x && other.y < best[t].y) {
                best[t] = other;
            }
        }
        workgroupBarrier();
    }
    if t == 0u {
        out[row] = select(f32(best[0].y), -1.0, best[0].x == NO_NUMBER);
    }
}
