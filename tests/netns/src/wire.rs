//! The wire: bridges in their own namespace, one cable per machine, and optionally a router with a
//! narrower side.

use anyhow::Result;

use crate::netns::Netns;

/// Bridges and the ports on them.
#[derive(Clone, Debug)]
pub struct Wire {
    /// Where the bridges are.
    pub netns: Netns,
    ports: Vec<(Netns, String)>,
}

impl Wire {
    /// A wire with `segments` bridges, which are not connected to each other.
    ///
    /// # Errors
    /// A system call fails.
    pub fn create(segments: usize) -> Result<Wire> {
        let wire = Wire { netns: Netns::create("wire")?, ports: Vec::new() };
        (0..segments).try_for_each(|segment| wire.add_segment(segment))?;
        Ok(wire)
    }

    /// Adds a bridge that is connected to no other.
    ///
    /// # Errors
    /// A system call fails.
    pub fn add_segment(&self, segment: usize) -> Result<()> {
        // A bridge that snoops multicast may withhold neighbour discovery. A bridge with an address
        // would be a machine itself.
        self.netns.ip(&format!(
            "link add wire{segment} type bridge mcast_snooping 0 forward_delay 0
             link set wire{segment} addrgenmode none mtu 9000 up"
        ))
    }

    /// Plugs `interface` of `machine` into a segment. Both ends of the cable have `mtu`; the
    /// machine's end has no address.
    ///
    /// # Errors
    /// A system call fails.
    pub fn plug(&mut self, machine: &Netns, interface: &str, segment: usize, mtu: u32) -> Result<()> {
        let port = match interface {
            "eth0" => format!("w-{}", machine.name()),
            _ => format!("w-{}-{interface}", machine.name()),
        };
        self.netns.ip(&format!(
            "link add {port} mtu {mtu} type veth peer name cable mtu {mtu}
             link set {port} addrgenmode none master wire{segment} up"
        ))?;
        move_link(&self.netns, "cable", machine, interface)?;
        machine.ip(&format!("link set {interface} up"))?;
        self.ports.push((self.netns.clone(), port));
        Ok(())
    }

    /// The interfaces where a capture must listen.
    pub fn ports(&self) -> &[(Netns, String)] {
        &self.ports
    }
}

/// Moves an interface into another namespace under another name.
///
/// # Errors
/// A system call fails.
pub fn move_link(from: &Netns, name: &str, to: &Netns, new_name: &str) -> Result<()> {
    from.ip(&format!("link set {name} netns {} name {new_name}", to.path().display()))
}
