//! With what a device's packets begin, and which program reads them there.

use crate::layout::Hook;

/// With what packets begin on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// With an Ethernet header.
    Ethernet,
    /// With their IP header, as on a TUN, PPP or WireGuard device.
    Ip,
}

impl Framing {
    /// Every program there is.
    pub const PROGRAMS: [&'static str; 7] =
        ["from_pod", "to_pod", "from_tunnel", "from_wire", "to_wire", "from_wire_ip", "to_wire_ip"];

    /// The program for `hook` on a device with this framing.
    pub const fn program(self, hook: Hook) -> &'static str {
        match (self, hook) {
            (Framing::Ip, Hook::FromWire) => "from_wire_ip",
            (Framing::Ip, Hook::ToWire) => "to_wire_ip",
            _ => hook.as_str(),
        }
    }
}
