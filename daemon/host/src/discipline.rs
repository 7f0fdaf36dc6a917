//! Queueing disciplines that filters hang on: clsact, on kernels without TCX, and its forerunner `ingress`, beside which there can be none.

use futures_util::TryStreamExt;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use nix::errno::Errno;

use super::{HostError, Netlink, is_errno, refused};

/// A filter on one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Smaller ones are asked first.
    pub preference: u16,
    /// Its number among those of the same preference.
    pub handle: u16,
    /// What it is: `bpf`, `flower`, ...
    pub kind: String,
}

impl Filter {
    /// None for what stands for all filters of a preference, and for those of other chains, which are asked when another says so.
    fn from(message: &TcMessage) -> Option<Filter> {
        let (mut kind, mut chain) = (String::new(), 0);
        for attribute in &message.attributes {
            match attribute {
                TcAttribute::Kind(name) => kind.clone_from(name),
                TcAttribute::Chain(number) => chain = *number,
                _ => {}
            }
        }
        let (preference, handle) = ((message.header.info >> 16) as u16, message.header.handle);
        let is_one = chain == 0 && handle != TcHandle::default();
        is_one.then_some(Filter { preference, handle: handle.minor, kind })
    }
}

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a {} filter of preference {}", self.kind, self.preference)
    }
}

impl Netlink {
    /// The filters of a device on the way in or out, in the order in which they are asked; none if there is no such discipline.
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

    /// Removes a device's clsact queueing discipline, unless it is not there or somebody has filters on it.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn remove_clsact(&self, index: u32) -> Result<(), HostError> {
        if !self.filters(index, true).await?.is_empty() || !self.filters(index, false).await?.is_empty() {
            return Ok(());
        }
        self.remove_discipline(index, "clsact").await
    }

    /// Makes room for clsact: an `ingress` queueing discipline goes if nobody has filters on it.
    ///
    /// # Errors
    /// [`HostError::Ingress`] if somebody has.
    pub async fn make_room_for_clsact(&self, index: u32) -> Result<(), HostError> {
        let disciplines: Vec<TcMessage> =
            self.handle.qdisc().get().execute().try_collect().await.map_err(refused("list queueing disciplines"))?;
        let is_ingress = |message: &TcMessage| {
            let named =
                message.attributes.iter().any(|one| matches!(one, TcAttribute::Kind(kind) if kind == "ingress"));
            message.header.index == index as i32 && named
        };
        if !disciplines.iter().any(is_ingress) {
            return Ok(());
        }
        if let Some(filter) = self.filters(index, true).await?.first() {
            return Err(HostError::Ingress { filter: filter.to_string() });
        }
        hauberk_fault::point("remove an ingress queueing discipline");
        self.remove_discipline(index, "ingress").await
    }

    async fn remove_discipline(&self, index: u32, kind: &str) -> Result<(), HostError> {
        let mut request = self.handle.qdisc().del(index as i32);
        // Both have the same place.
        request.message_mut().header.parent = TcHandle::CLSACT;
        match request.execute().await {
            Err(error) if !is_errno(&error, Errno::ENOENT) && !is_errno(&error, Errno::EINVAL) => {
                Err(refused(format!("remove the {kind} queueing discipline of device {index}"))(error))
            }
            _ => Ok(()),
        }
    }
}
