//! The API's requests and records as the core has them.

use hauberk_api::{Attachment, PodReference, Reserve};
use hauberk_core::attachment::{self, NamedPod, VethPair};
use hauberk_core::model::Change;
use hauberk_core::names::{AttachmentKey, PodName};
use ipnet::IpNet;

/// What the model hears of an interface that is on record.
pub fn change(record: &Attachment) -> Change {
    let named = |pod: &PodReference| NamedPod { name: pod_name(pod), uid: pod.uid.clone() };
    Change::Attachment(attachment::Attachment {
        key: key(record),
        pod: record.request.pod.as_ref().map(named),
        addresses: record.reservation.addresses.iter().map(IpNet::addr).collect(),
        host_interface: record.reservation.host_interface.clone(),
        pair: record.attach.as_ref().map(|attach| VethPair {
            host_index: attach.host_index,
            host_mac: attach.host_mac,
            pod_mac: attach.pod_mac,
        }),
        adopted: record.adopted,
        recovered: record.recovered,
    })
}

/// The key of a record.
pub fn key(record: &Attachment) -> AttachmentKey {
    key_of_request(&record.request)
}

/// The key of the interface that is asked for.
pub fn key_of_request(request: &Reserve) -> AttachmentKey {
    AttachmentKey::new(&request.container, &request.interface)
}

/// A pod's name.
pub fn pod_name(pod: &PodReference) -> PodName {
    PodName { namespace: pod.namespace.clone(), name: pod.name.clone() }
}
