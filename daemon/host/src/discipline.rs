//! Queueing disciplines that hold filters: clsact, used on kernels without TCX, and its predecessor
//! `ingress`. A device can have only one of the two.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use nix::errno::Errno;

use super::{HostError, Netlink, is_errno, refused};

/// A filter of such a queueing discipline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Filters with a smaller preference run first.
    pub preference: u16,
    /// Its number among the filters of the same preference.
    pub handle: u16,
    /// Its kind: `bpf`, `flower`, ...
    pub kind: String,
    /// The id of its eBPF program, if it has one.
    pub program: Option<u32>,
}

impl Filter {
    /// None for the entry that stands for all filters of a preference, and for filters of other
    /// chains, which run only when another filter jumps there.
    fn from(message: &TcMessage) -> Option<Filter> {
        let (mut kind, mut chain, mut program) = (String::new(), 0, None);
        for attribute in &message.attributes {
            match attribute {
                TcAttribute::Kind(name) => kind.clone_from(name),
                TcAttribute::Chain(number) => chain = *number,
                TcAttribute::Options(options) => {
                    program = options.iter().find_map(|option| match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        let (preference, handle) = ((message.header.info >> 16) as u16, message.header.handle);
        let is_one = chain == 0 && handle != TcHandle::default();
        is_one.then_some(Filter { preference, handle: handle.minor, kind, program })
    }
}

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a {} filter of preference {}", self.kind, self.preference)
    }
}

impl Netlink {
    /// The ingress or egress filters of a device, in the order in which they run; empty if there is
    /// no such queueing discipline. At an `ingress` discipline the kernel takes and lists filters
    /// for egress too, but runs none there: see [`Netlink::old_disciplines`].
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn filters(&self, index: u32, ingress: bool) -> Result<Vec<Filter>, HostError> {
        let mut filters = self.handle.traffic_filter(index as i32);
        let request = if ingress { filters.get().ingress() } else { filters.get().egress() };
        match request.execute().try_collect::<Vec<_>>().await {
            Ok(messages) => Ok(messages.iter().filter_map(Filter::from).collect()),
            Err(error) if is_errno(&error, Errno::EINVAL) || is_errno(&error, Errno::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(refused(format!("list filters of device {index}"))(error)),
        }
    }

    /// The devices that have an `ingress` queueing discipline in the place of clsact, by index.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn old_disciplines(&self) -> Result<BTreeSet<u32>, HostError> {
        let disciplines: Vec<TcMessage> =
            self.handle.qdisc().get().execute().try_collect().await.map_err(refused("list queueing disciplines"))?;
        let is_old = |message: &&TcMessage| {
            message.attributes.iter().any(|one| matches!(one, TcAttribute::Kind(kind) if kind == "ingress"))
        };
        Ok(disciplines.iter().filter(is_old).map(|message| message.header.index as u32).collect())
    }

    /// Removes a device's clsact queueing discipline, unless there is none or it has filters.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn remove_clsact(&self, index: u32) -> Result<(), HostError> {
        if !self.filters(index, true).await?.is_empty() || !self.filters(index, false).await?.is_empty() {
            return Ok(());
        }
        self.remove_discipline(index, "clsact").await
    }

    /// Makes room for clsact: removes an `ingress` queueing discipline, unless it has filters of
    /// others. `is_own` knows hauberk's.
    ///
    /// # Errors
    /// [`HostError::Ingress`] if it has filters of others.
    pub async fn make_room_for_clsact(&self, index: u32, is_own: impl Fn(&Filter) -> bool) -> Result<(), HostError> {
        if !self.old_disciplines().await?.contains(&index) {
            return Ok(());
        }
        if let Some(filter) = self.filters(index, true).await?.iter().find(|filter| !is_own(filter)) {
            return Err(HostError::Ingress { filter: filter.to_string() });
        }
        hauberk_fault::point("remove an ingress queueing discipline");
        self.remove_discipline(index, "ingress").await
    }

    async fn remove_discipline(&self, index: u32, kind: &str) -> Result<(), HostError> {
        let mut request = self.handle.qdisc().del(index as i32);
        // Both disciplines have the same parent.
        request.message_mut().header.parent = TcHandle::CLSACT;
        match request.execute().await {
            Err(error) if !is_errno(&error, Errno::ENOENT) && !is_errno(&error, Errno::EINVAL) => {
                Err(refused(format!("remove the {kind} queueing discipline of device {index}"))(error))
            }
            _ => Ok(()),
        }
    }
}
