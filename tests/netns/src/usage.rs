//! What a process and what this machine have used, as `/proc` tells it (proc(5)).

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

use crate::wait;

/// A line of a process's memory, KiB: `VmRSS` or another one in `/proc/<process>/status`.
///
/// # Errors
/// It has ended, or there is no such line.
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

/// Waits until a process has nothing left to do.
///
/// # Errors
/// It has ended, or goes on for a minute.
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

/// What all CPUs together have done so far.
#[derive(Clone, Copy)]
pub struct Clock {
    busy: u64,
    idle: u64,
    stolen: u64,
    all: u64,
}

/// What happened between two readings.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// CPU seconds in which something ran, over all CPUs.
    pub busy_seconds: f64,
    /// Per cent of the time in which there was nothing to do.
    pub idle_percent: f64,
    /// Per cent of the time that the host took away.
    pub steal_percent: f64,
}

impl Clock {
    /// Now.
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

    /// What happened since.
    ///
    /// # Errors
    /// As [`Clock::read`].
    pub fn elapsed(self) -> Result<Spent> {
        Clock::read()?.since(self)
    }

    /// What happened from another reading to this one.
    ///
    /// # Errors
    /// The system does not know its own ticks.
    pub fn since(self, before: Clock) -> Result<Spent> {
        let share = |part: u64| 100.0 * part as f64 / (self.all - before.all).max(1) as f64;
        Ok(Spent {
            busy_seconds: (self.busy - before.busy) as f64 / ticks_per_second()?,
            idle_percent: share(self.idle - before.idle),
            steal_percent: share(self.stolen - before.stolen),
        })
    }
}
