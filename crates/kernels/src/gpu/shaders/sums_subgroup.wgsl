// The sums of TOKENS values of each of LANES neighbours: a thread gets that of value `lane / SHARE`. Where a subgroup has as
// many threads, each step hands over those that the neighbour keeps, so that there are fewer with every step; the order of
// additions is that of `lanes_sum4`.
fn lanes_sums(sums: ptr<function, array<vec4<f32>, TOKENS>>, position: u32) -> vec4<f32> {
    let own = position % LANES / SHARE;
    var sum = vec4<f32>();
    if TOKENS > subgroup.w {
        for (var i = 0u; i < TOKENS; i++) {
            let all = lanes_sum4((*sums)[i], position);
            if own == i {
                sum = all;
            }
        }
        return sum;
    }
    let width = min(LANES, subgroup.w);
    var step = width;
$HALVINGS
    sum = (*sums)[0];
    for (step /= 2u; step > 0u; step /= 2u) {
        sum += subgroupShuffleXor(sum, step);
    }
    if LANES > subgroup.w {
        workgroup_values[position] = sum;
        workgroupBarrier();
        let first = position / LANES * LANES + own * (width / TOKENS);
        sum = workgroup_values[first];
        for (var other = width; other < LANES; other += width) {
            sum += workgroup_values[first + other];
        }
        workgroupBarrier();
    }
    return sum;
}
