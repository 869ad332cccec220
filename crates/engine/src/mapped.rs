//! What a GPU may map of the machine's memory, where its driver sets a limit: Metal's recommended working set.

/// A GPU's ceiling on the machine's memory, where it is below what was given.
pub(crate) struct Mapped {
    given_bytes: u64,
    mapped_bytes_max: u64,
    /// What takes the place of what was given: the overhead is nothing that a GPU maps.
    pub(crate) budget_bytes: u64,
}

impl Mapped {
    /// `None` where nothing is below.
    pub(crate) fn below(
        given_bytes: u64,
        mapped_bytes_max: Option<u64>,
        overhead_bytes: u64,
    ) -> Option<Self> {
        let mapped_bytes_max = mapped_bytes_max?;
        let budget_bytes = mapped_bytes_max.saturating_add(overhead_bytes);
        (budget_bytes < given_bytes).then_some(Self { given_bytes, mapped_bytes_max, budget_bytes })
    }

    /// For a plan that does not fit.
    pub(crate) fn limit(&self) -> String {
        let most = gib(self.mapped_bytes_max);
        format!("the GPU maps at most {most} of this machine's memory, and --device cpu has no such limit")
    }

    /// For a plan that is smaller than what was given.
    pub(crate) fn note(&self) -> String {
        let [given, most, budget] = [self.given_bytes, self.mapped_bytes_max, self.budget_bytes].map(gib);
        format!("{given} is more than the GPU may map of this machine's memory, {most}: {budget} are planned")
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}
