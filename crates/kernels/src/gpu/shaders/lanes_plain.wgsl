// The LANES threads that share a sum add up through shared memory.

fn position(t: u32) -> u32 {
    return t;
}

fn lanes_sum(value: f32, position: u32) -> f32 {
    return lanes_sum4(vec4<f32>(value, 0.0, 0.0, 0.0), position).x;
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

fn lanes_max4(value: vec4<f32>, position: u32) -> vec4<f32> {
    team_values[position] = value;
    workgroupBarrier();
    var most = value;
    for (var i = 0u; i < LANES; i++) {
        most = max(most, team_values[position / LANES * LANES + i]);
    }
    workgroupBarrier();
    return most;
}
