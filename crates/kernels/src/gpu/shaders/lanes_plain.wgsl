// The LANES threads that share four rows add up through shared memory.

fn position(t: u32) -> u32 {
    return t;
}

fn lanes_sum4(value: vec4<f32>, position: u32) -> vec4<f32> {
    team_values[position] = value;
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step >>= 1u) {
        if position % LANES < step {
            team_values[position] += team_values[position + step];
        }
        workgroupBarrier();
    }
    let sum = team_values[position / LANES * LANES];
    workgroupBarrier();
    return sum;
}
