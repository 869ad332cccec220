// Prepares rows of activations for products of integers: for each row the high and low bytes of both halves of its
// steps, [4, chunks, 4] words, and [chunks, 4] floats: scale, the sums of both halves, nothing.

struct Params {
    cols: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let at = position(t);
    let chunks = p.cols / 32u;
    let item = group.x * THREADS + at;
    let used = min(item, chunks * 8u - 1u);
    let chunk = used / 8u;
    let word = integers(x_word(group.y, chunk, used % 8u, p.cols), at);
    if item != used {
        return;
    }
    let first = (group.y * 5u * chunks + chunk) * 4u;
    let half = (item >> 2u) & 1u;
    out[first + half * chunks * 4u + (item & 3u)] = word.high;
    out[first + (2u + half) * chunks * 4u + (item & 3u)] = word.low;
    if (item & 3u) == 0u {
        out[first + 16u * chunks + 1u + half] = bitcast<u32>(word.sum);
        if half == 0u {
            out[first + 16u * chunks] = bitcast<u32>(word.scale);
        }
    }
}
