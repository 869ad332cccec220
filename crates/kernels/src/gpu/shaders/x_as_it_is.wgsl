// Activations that the kernel reads where they are: all steps of a row at a time.

const X_CHUNKS = 0x1000000u;

fn x_take(row: u32, first: u32, count: u32, cols: u32, at: u32) {
}
