// out[r] = v / sqrt(mean(v^2) + eps) * weight for the row v that `summed` gives and `keep` may store; a workgroup a row.

// Values that a thread holds on to.
const EACH = 4u;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let row = folded(group);
    if row >= p.rows {
        return;
    }
    prepare(row);
    let items = p.cols / VALUES;
    var v: array<Values, EACH>;
    var w: array<Values, EACH>;
    var squares = 0.0;
    for (var block = t; block < items; block += EACH * THREADS) {
        // All loads before the first store: a compiler cannot know that they are of other places.
        for (var e = 0u; e < EACH; e++) {
            let i = block + e * THREADS;
            if i < items {
                v[e] = summed(row, i, items);
                w[e] = weight[i];
            }
        }
        for (var e = 0u; e < EACH; e++) {
            let i = block + e * THREADS;
            if i < items {
                keep(row * items + i, v[e]);
                squares += squared(v[e]);
            }
        }
    }
    let scale = 1.0 / sqrt(workgroup_sum(squares, t) / f32(p.cols) + p.eps);
    for (var block = t; block < items; block += EACH * THREADS) {
        for (var e = 0u; e < EACH; e++) {
            let i = block + e * THREADS;
            if i < items {
                // Of a longer row, a thread holds the last values only.
                if items > EACH * THREADS {
                    v[e] = x[row * items + i];
                    w[e] = weight[i];
                }
                out[row * items + i] = v[e] * scale * w[e];
            }
        }
    }
}
