// The sums of TOKENS values of each of LANES neighbours: a thread gets that of value `lane / SHARE`.
fn lanes_sums(sums: ptr<function, array<vec4<f32>, TOKENS>>, position: u32) -> vec4<f32> {
    let own = position % LANES / SHARE;
    var sum = vec4<f32>();
    for (var i = 0u; i < TOKENS; i++) {
        let all = lanes_sum4((*sums)[i], position);
        if own == i {
            sum = all;
        }
    }
    return sum;
}
