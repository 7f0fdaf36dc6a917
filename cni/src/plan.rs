//! The network inside a pod, derived from the agent's reservation. It is pure, so that ADD sets up,
//! CHECK compares and the result reports the same.

use std::net::IpAddr;

use hauberk_api::Reservation;
use ipnet::IpNet;

use crate::error::CniError;
use crate::name;

/// A pod's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodPlan {
    /// Name of the host side.
    pub(crate) host_interface: String,
    /// MTU of the pair, bytes.
    pub(crate) mtu: u32,
    /// Largest GSO packet the pod may build, bytes; 0: the kernel's default.
    pub(crate) gso_max_size: u32,
    /// The pod's addresses, each as a prefix of one address.
    pub(crate) addresses: Vec<IpNet>,
    /// One per family. No device has this address: a permanent neighbour entry maps it to the host
    /// side's MAC address.
    pub(crate) gateways: Vec<IpAddr>,
    /// In an order that the kernel accepts: routes to the gateways first.
    pub(crate) routes: Vec<PodRoute>,
}

/// A route inside the pod, over its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodRoute {
    pub(crate) destination: IpNet,
    /// None for a destination on the link.
    pub(crate) gateway: Option<IpAddr>,
    /// In bytes, if it is smaller than the interface's.
    pub(crate) mtu: Option<u32>,
}

impl PodPlan {
    /// Refuses a reservation that cannot give a working pod.
    pub(crate) fn new(reservation: &Reservation) -> Result<PodPlan, CniError> {
        let senseless = |what: String| CniError::Agent(format!("its reservation makes no sense: {what}; see its log"));
        if !name::is_interface(&reservation.host_interface) {
            return Err(senseless(format!("host interface {:?}", reservation.host_interface)));
        }
        if reservation.addresses.is_empty() {
            return Err(senseless("no address".to_string()));
        }
        let mut gateways = Vec::new();
        for address in &reservation.addresses {
            if address.prefix_len() != address.max_prefix_len() {
                return Err(senseless(format!("{address} is more than one address")));
            }
            let gateway = gateway_for(&address.addr(), &reservation.gateways)
                .ok_or_else(|| senseless(format!("no gateway for {address}")))?;
            if !gateways.contains(&gateway) {
                gateways.push(gateway);
            }
        }
        Ok(PodPlan {
            host_interface: reservation.host_interface.clone(),
            mtu: reservation.device_mtu,
            gso_max_size: reservation.gso_max_size,
            addresses: reservation.addresses.clone(),
            routes: gateways.iter().flat_map(|gateway| routes_through(*gateway, reservation)).collect(),
            gateways,
        })
    }

    /// The gateway of an address' family.
    pub(crate) fn gateway(&self, address: &IpAddr) -> Option<IpAddr> {
        gateway_for(address, &self.gateways)
    }

    /// Whether the pod has IPv6.
    pub(crate) fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|address| address.addr().is_ipv6())
    }
}

fn gateway_for(address: &IpAddr, gateways: &[IpAddr]) -> Option<IpAddr> {
    gateways.iter().copied().find(|gateway| gateway.is_ipv4() == address.is_ipv4())
}

/// A route to the gateway on the link, and all others through it. Ranges inside the cluster have
/// the MTU that leaves room for the tunnel.
fn routes_through(gateway: IpAddr, reservation: &Reservation) -> Vec<PodRoute> {
    let narrow = Some(reservation.route_mtu).filter(|mtu| (1..reservation.device_mtu).contains(mtu));
    let everything = IpNet::new_assert(if gateway.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0);
    let mut ranges: Vec<IpNet> = reservation.cluster_ranges.iter().map(IpNet::trunc).collect();
    ranges.retain(|range| range.addr().is_ipv4() == gateway.is_ipv4());
    ranges.sort();
    ranges.dedup();

    let through = |destination: IpNet, mtu| PodRoute { destination, gateway: Some(gateway), mtu };
    let mut routes = vec![PodRoute { destination: IpNet::from(gateway), gateway: None, mtu: None }];
    if !ranges.contains(&everything) {
        routes.push(through(everything, None));
    }
    routes.extend(ranges.into_iter().map(|range| through(range, narrow)));
    routes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn reservation() -> Reservation {
        Reservation {
            addresses: vec!["10.244.1.5/32".parse().unwrap(), "fd00:10:244:1::5/128".parse().unwrap()],
            gateways: vec!["169.254.1.1".parse().unwrap(), "fe80::1".parse().unwrap()],
            route_mtu: 1420,
            device_mtu: 1500,
            host_interface: "hbk0123456789".to_string(),
            cluster_ranges: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
            gso_max_size: 65536,
        }
    }

    fn text(plan: &PodPlan) -> Vec<String> {
        let text = |route: &PodRoute| format!("{} {:?} {:?}", route.destination, route.gateway, route.mtu);
        plan.routes.iter().map(text).collect()
    }

    #[test]
    fn both_families() {
        let plan = PodPlan::new(&reservation()).unwrap();
        assert_eq!(
            text(&plan),
            [
                "169.254.1.1/32 None None",
                "0.0.0.0/0 Some(169.254.1.1) None",
                "10.244.0.0/16 Some(169.254.1.1) Some(1420)",
                "fe80::1/128 None None",
                "::/0 Some(fe80::1) None",
                "fd00:10:244::/48 Some(fe80::1) Some(1420)",
            ]
        );
    }

    #[test]
    fn one_family_leaves_the_other_alone() {
        let mut reservation = reservation();
        reservation.addresses.truncate(1);
        let plan = PodPlan::new(&reservation).unwrap();
        assert_eq!(plan.gateways.len(), 1);
        assert!(!plan.has_ipv6());
        assert!(plan.routes.iter().all(|route| route.destination.addr().is_ipv4()));
    }

    #[test]
    fn a_cluster_that_is_everything_narrows_the_default_route() {
        let mut reservation = reservation();
        reservation.addresses.truncate(1);
        reservation.cluster_ranges = vec!["0.0.0.0/0".parse().unwrap(), "10.244.3.9/16".parse().unwrap()];
        let plan = PodPlan::new(&reservation).unwrap();
        assert_eq!(
            text(&plan)[1..],
            ["0.0.0.0/0 Some(169.254.1.1) Some(1420)", "10.244.0.0/16 Some(169.254.1.1) Some(1420)"]
        );
    }

    #[test]
    fn answers_without_sense_are_refused() {
        let broken: [fn(&mut Reservation); 4] = [
            |r| r.host_interface = "../x".to_string(),
            |r| r.addresses.clear(),
            |r| r.addresses[0] = "10.244.1.0/24".parse().unwrap(),
            |r| r.gateways.truncate(1),
        ];
        for breaking in broken {
            let mut reservation = reservation();
            breaking(&mut reservation);
            assert_eq!(PodPlan::new(&reservation).unwrap_err().code(), 103);
        }
    }
}
