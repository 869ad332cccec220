// The LANES threads that share four rows are neighbours within one subgroup, whatever its size.

fn position(t: u32) -> u32 {
    return subgroup.x * subgroup.w + subgroup.y;
}

fn lanes_sum4(value: vec4<f32>, position: u32) -> vec4<f32> {
    var sum = value;
    for (var step = LANES / 2u; step > 0u; step >>= 1u) {
        sum += subgroupShuffleXor(sum, step);
    }
    return sum;
}
