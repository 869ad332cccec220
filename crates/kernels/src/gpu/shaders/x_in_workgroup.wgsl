// A workgroup prepares a row of activations in its own memory, X_CHUNKS steps at a time.

// A multiple of every LANES.
const X_CHUNKS = 128u;
// Words of a full load that a thread prepares.
const X_WORDS = X_CHUNKS * 8u / THREADS;

// High and low bytes of both halves, step by step: neighbours in a subgroup read neighbours.
var<workgroup> x_bytes: array<vec4<u32>, 4u * X_CHUNKS>;
var<workgroup> x_scales: array<vec4<f32>, X_CHUNKS>;

// Prepares `count` steps of a row, from step `first` on: all loads first, so that they are on their way together.
fn x_take(row: u32, first: u32, count: u32, cols: u32, at: u32) {
    if first > 0u {
        workgroupBarrier();
    }
    let words = count * 8u;
    var loaded: array<vec4<f32>, X_WORDS>;
    for (var i = 0u; i < X_WORDS; i++) {
        if i * THREADS < words {
            let item = min(i * THREADS + at, words - 1u);
            loaded[i] = x_word(row, first + item / 8u, item % 8u, cols);
        }
    }
    for (var i = 0u; i < X_WORDS; i++) {
        if i * THREADS < words {
            let word = integers(loaded[i], at);
            if i * THREADS + at < words {
                x_put(word, i * THREADS + at);
            }
        }
    }
    workgroupBarrier();
}

fn x_put(word: Word, item: u32) {
    let chunk = item / 8u;
    let half = (item >> 2u) & 1u;
    x_bytes[half * X_CHUNKS + chunk][item & 3u] = word.high;
    x_bytes[(2u + half) * X_CHUNKS + chunk][item & 3u] = word.low;
    if (item & 3u) == 0u {
        x_scales[chunk][1u + half] = word.sum;
        if half == 0u {
            x_scales[chunk].x = word.scale;
        }
    }
}

fn columns(row: u32, chunk: u32, split: u32, cols: u32) -> Columns {
    let at = chunk % X_CHUNKS;
    let scales = x_scales[at];
    return Columns(
        x_bytes[at], x_bytes[X_CHUNKS + at], x_bytes[2u * X_CHUNKS + at], x_bytes[3u * X_CHUNKS + at],
        scales.x, scales.yz,
    );
}
