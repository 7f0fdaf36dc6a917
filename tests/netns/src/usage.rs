//! What a process and this machine have used, as `/proc` reports it (proc(5)).

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

use crate::wait;

/// A memory field of a process, KiB: `VmRSS` or another one in `/proc/<process>/status`.
///
/// # Errors
/// The process has ended, or there is no such field.
pub fn memory(process: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}: has it ended?"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let line = line.with_context(|| format!("no {field} in {path}"))?;
    line.split_whitespace().next().and_then(|word| word.parse().ok()).with_context(|| format!("{field} in KiB: {line}"))
}

/// CPU time of a process so far, seconds.
///
/// # Errors
/// It has ended.
pub fn cpu(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}: has it ended?"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let times = fields.get(11..13).with_context(|| format!("{path} is short"))?;
    let ticks: u64 = times.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / ticks_per_second()?)
}

/// Waits until a process is idle.
///
/// # Errors
/// The process has ended, or is still busy after a minute.
pub fn settle(process: u32) -> Result<()> {
    wait::within(Duration::from_secs(60), "the process to come to rest", || {
        let before = cpu(process)?;
        thread::sleep(Duration::from_secs(1));
        Ok((cpu(process)? - before < 0.1).then_some(()))
    })
}

fn ticks_per_second() -> Result<f64> {
    Ok(sysconf(SysconfVar::CLK_TCK).context("sysconf")?.context("CLK_TCK")? as f64)
}

/// A reading of the time of all CPUs together.
#[derive(Clone, Copy)]
pub struct Clock {
    busy: u64,
    idle: u64,
    stolen: u64,
    all: u64,
}

/// The difference between two readings.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// CPU seconds in which something ran, over all CPUs.
    pub busy_seconds: f64,
    /// Percentage of the time in which the CPUs were idle.
    pub idle_percent: f64,
    /// Percentage of the time that the host took away.
    pub steal_percent: f64,
}

impl Clock {
    /// Reads the current values.
    ///
    /// # Errors
    /// `/proc/stat` is not as documented.
    pub fn read() -> Result<Clock> {
        let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let line = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("no `cpu` in /proc/stat")?;
        let ticks: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guest time is counted in user.
        let [user, nice, system, idle, iowait, irq, softirq, stolen, ..] = ticks[..] else {
            anyhow::bail!("/proc/stat says {line}");
        };
        let busy = user + nice + system + irq + softirq;
        Ok(Clock { busy, idle, stolen, all: busy + idle + iowait + stolen })
    }

    /// The difference from this reading to now.
    ///
    /// # Errors
    /// As [`Clock::read`].
    pub fn elapsed(self) -> Result<Spent> {
        Clock::read()?.since(self)
    }

    /// The difference from another reading to this one.
    ///
    /// # Errors
    /// The length of a tick is not known.
    pub fn since(self, before: Clock) -> Result<Spent> {
        let share = |part: u64| 100.0 * part as f64 / (self.all - before.all).max(1) as f64;
        Ok(Spent {
            busy_seconds: (self.busy - before.busy) as f64 / ticks_per_second()?,
            idle_percent: share(self.idle - before.idle),
            steal_percent: share(self.stolen - before.stolen),
        })
    }
}
