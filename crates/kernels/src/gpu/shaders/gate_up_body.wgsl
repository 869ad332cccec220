// The body of `gate_up` and `gate_up_routed`, which say what a workgroup's job is. With SHARED, a tile more for each row is an
// expert with weights in other buffers. Workgroups of the same outputs follow each other through the tiles, so that the
// rows that an expert has read its weights at about the same time, all but the first from a cache.

struct Params {
    tiles: u32,
    entries: u32,
    hidden: u32,
    intermediate: u32,
    // Steps of the decoders in a row.
    chunks: u32,
    // The tile after the last, the first of the shared expert, and the bases of its gate and up.
    shared_tile: u32,
    shared_base: array<u32, 6>,
    // Where the lookup of this group of experts starts, for `gate_up_routed`; `route.wgsl` says what is in it.
    lookup: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<XItem>;
@group(0) @binding(2) var<storage, read_write> act: array<f32>;

struct Job {
    gate_base: vec3<u32>,
    up_base: vec3<u32>,
    first: u32,
    count: u32,
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let at = position(t);
    let lane = at % LANES;
    let n = (group.y * (THREADS / LANES) + at / LANES) * 4u;
    let four = min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(p.intermediate - 1u));
    let is_shared = SHARED == 1u && group.x >= p.shared_tile;
    var job = Job(
        vec3<u32>(p.shared_base[0], p.shared_base[1], p.shared_base[2]),
        vec3<u32>(p.shared_base[3], p.shared_base[4], p.shared_base[5]),
        group.x,
        1u,
    );
    if !is_shared {
        job = job_of(group, t);
    }
    if job.count == 0u {
        return;
    }
    var rows: array<u32, TOKENS>;
    var gates: array<vec4<f32>, TOKENS>;
    var ups: array<vec4<f32>, TOKENS>;
    for (var i = 0u; i < TOKENS; i++) {
        if is_shared {
            rows[i] = group.x - p.shared_tile;
        } else {
            rows[i] = row_of(job.first + min(i, job.count - 1u));
        }
    }
    for (var first_chunk = 0u; first_chunk < p.chunks; first_chunk += X_CHUNKS) {
        let chunks = min(X_CHUNKS, p.chunks - first_chunk);
        x_take(rows[0], first_chunk, chunks, p.hidden, at);
        for (var chunk = first_chunk + lane; chunk < first_chunk + chunks; chunk += LANES) {
            if is_shared {
                shared_gate_step(&gates, job.gate_base, four, &rows, p.hidden, chunk);
                shared_up_step(&ups, job.up_base, four, &rows, p.hidden, chunk);
            } else {
                gate_step(&gates, job.gate_base, four, &rows, p.hidden, chunk);
                up_step(&ups, job.up_base, four, &rows, p.hidden, chunk);
            }
        }
    }
    let g = lanes_sums(&gates, at);
    let u = lanes_sums(&ups, at);
    let entry = lane / SHARE;
    for (var c = lane % SHARE; c < 4u; c += SHARE) {
        if n + c < p.intermediate && entry < job.count {
            act[(job.first + entry) * p.intermediate + n + c] = silu(g[c]) * u[c];
        }
    }
}
