//! What the proxy itself can say of a share: of jobs that it gave out, whether
//! the share meets them, and whether it came before.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bitcoin::Target;

use super::request::Submit;
use crate::proxy::work::{Extranonce, Found, Job};

/// Jobs of one tip that a device may submit shares of. Devices work on the
/// newest, and finish one or two before it.
const MAX_JOBS: usize = 16;
/// Shares of one tip that are remembered, to know them again. The pool knows
/// all of them.
const MAX_SEEN: usize = 4_096;

/// Why a share is worth nothing, as Stratum V1 numbers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u8,
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn new(code: u8, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    /// A pool's Sv2 error code.
    pub(super) fn of_pool(error_code: String) -> Self {
        let code = match error_code.as_str() {
            "stale-share" | "invalid-job-id" => 21,
            "duplicate-share" => 22,
            "difficulty-too-low" => 23,
            _ => 20,
        };
        Self { code, reason: error_code }
    }
}

/// A share that the proxy finds nothing wrong with.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It meets the pool's target.
    ForPool { job: Arc<Job>, extranonce: Vec<u8>, found: Found },
    /// It meets only the difficulty that the device was set.
    Local,
}

/// The jobs that a device was given.
#[derive(Debug, Default)]
pub(super) struct Judge {
    jobs: VecDeque<Issued>,
    /// Hashes of shares on this tip; the first bytes tell them apart.
    seen: HashSet<u64>,
    last_name: u32,
}

#[derive(Debug)]
struct Issued {
    name: u32,
    job: Arc<Job>,
    extranonce: Arc<Extranonce>,
}

impl Judge {
    /// Notes a job that goes out to the device, and names it.
    pub(super) fn issue(&mut self, job: Arc<Job>, extranonce: Arc<Extranonce>) -> String {
        self.last_name = self.last_name.wrapping_add(1);
        let name = self.last_name;
        if self.jobs.len() == MAX_JOBS {
            self.jobs.pop_front();
        }
        self.jobs.push_back(Issued { name, job, extranonce });
        format!("{name:x}")
    }

    /// Nothing that went out is worth anything any more.
    pub(super) fn clear(&mut self) {
        self.jobs = VecDeque::new();
        self.seen = HashSet::new();
    }

    /// Judges a share of a device that may roll the version's `mask`, and whose
    /// own difficulty stands for `local`.
    pub(super) fn judge(
        &mut self,
        share: &Submit,
        mask: u32,
        local: Option<Target>,
    ) -> Result<Verdict, Refusal> {
        let name = u32::from_str_radix(&share.job, 16).ok();
        let issued = self.jobs.iter().find(|issued| Some(issued.name) == name);
        let issued = issued.ok_or_else(|| Refusal::new(21, "stale: no such job, or an old one"))?;
        let Issued { job, extranonce, .. } = issued;
        if share.extranonce2.len() != extranonce.rolled {
            let wanted = format!("extranonce2 must be of {} bytes", extranonce.rolled);
            return Err(Refusal::new(20, wanted));
        }
        if share.time < job.min_time {
            return Err(Refusal::new(20, "ntime out of range"));
        }
        let mask = if job.version_rolling { mask } else { 0 };
        let version = rolled(job.version, share.version, mask)
            .ok_or_else(|| Refusal::new(20, "version bits outside of the mask"))?;
        let found = Found { version, time: share.time, nonce: share.nonce };
        let submitted = extranonce.submitted(&share.extranonce2);
        let whole = [extranonce.prefix.as_slice(), &submitted].concat();
        let hash = job.hash(&whole, found).ok_or_else(|| Refusal::new(20, "unusable job"))?;
        let for_pool = hash <= job.target;
        if !for_pool && local.is_none_or(|local| hash > local) {
            return Err(Refusal::new(23, "low difficulty share"));
        }
        let job = Arc::clone(job);
        if self.is_repeated(hash) {
            return Err(Refusal::new(22, "duplicate share"));
        }
        Ok(match for_pool {
            true => Verdict::ForPool { job, extranonce: submitted, found },
            false => Verdict::Local,
        })
    }

    fn is_repeated(&mut self, hash: Target) -> bool {
        let bytes = hash.to_le_bytes();
        let [a, b, c, d, e, f, g, h, ..] = bytes;
        let short = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        if self.seen.contains(&short) {
            return true;
        }
        if self.seen.len() < MAX_SEEN {
            self.seen.insert(short);
        }
        false
    }
}

/// The version that a device used (BIP 310); `None` if it changed bits that are
/// not its to change.
fn rolled(version: u32, bits: Option<u32>, mask: u32) -> Option<u32> {
    let Some(bits) = bits else { return Some(version) };
    (bits & !mask == 0).then_some((version & !mask) | (bits & mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bits_of_the_mask_are_rolled() {
        assert_eq!(rolled(0x2000_0000, None, 0), Some(0x2000_0000));
        assert_eq!(rolled(0x2000_0000, Some(0x2000), 0x1fff_e000), Some(0x2000_2000));
        assert_eq!(rolled(0x2000_2000, Some(0), 0x1fff_e000), Some(0x2000_0000));
        assert_eq!(rolled(0x2000_0000, Some(1), 0x1fff_e000), None);
        assert_eq!(rolled(0x2000_0000, Some(0x2000), 0), None);
    }

    #[test]
    fn the_pools_codes_have_numbers() {
        for (code, number) in
            [("stale-share", 21), ("duplicate-share", 22), ("difficulty-too-low", 23), ("x", 20)]
        {
            assert_eq!(Refusal::of_pool(code.to_owned()).code, number);
        }
    }
}
