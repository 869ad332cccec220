// How fast memory is: reads all of x, or copies it. A workgroup takes EACH vectors a thread, side by side.

struct Params {
    len: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let first = folded(group) * THREADS * EACH + t;
    // All loads before the first use, so that they are on their way together.
    var loaded: array<vec4<f32>, EACH>;
    for (var i = 0u; i < EACH; i++) {
        loaded[i] = x[min(first + i * THREADS, p.len - 1u)];
    }
    var sum = vec4<f32>();
    for (var i = 0u; i < EACH; i++) {
        let at = first + i * THREADS;
        if COPY == 0u {
            sum += loaded[i];
        } else if at < p.len {
            out[at] = loaded[i];
        }
    }
    // The buffer holds zeros, which a compiler cannot know.
    if COPY == 0u && sum.x + sum.y + sum.z + sum.w == 1.0 {
        out[0] = sum;
    }
}
