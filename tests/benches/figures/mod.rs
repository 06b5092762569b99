//! What every benchmark prints besides its own figures.

use std::time::Duration;

/// The middle one.
pub fn p50(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Prints what the figures depend on: the build, and how busy the machine was.
pub fn print_conditions() {
    let build = if cfg!(debug_assertions) { "debug" } else { "optimised" };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<_> = load.split(' ').take(3).collect();
    println!("{build} build on {cores} cores, load average {}", load.join(" "));
}
