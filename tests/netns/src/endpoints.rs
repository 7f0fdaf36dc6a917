//! The addresses that the kernel knows, read from the agent's map itself and not from a cache of
//! the agent.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::maps::{HashMap, Map, MapData, MapError};

/// The map ENDPOINTS of one agent.
pub struct Endpoints {
    map: HashMap<MapData, [u8; 16], [u8; 8]>,
}

impl Endpoints {
    /// Opens the map that is pinned somewhere below `pins`.
    ///
    /// # Errors
    /// There is none, or it has the wrong type.
    pub fn open(pins: &Path) -> Result<Endpoints> {
        let found = find(pins, "ENDPOINTS")?;
        let data = MapData::from_pin(&found).with_context(|| format!("open {}", found.display()))?;
        Ok(Endpoints { map: HashMap::try_from(Map::HashMap(data)).context("ENDPOINTS is a hash map")? })
    }

    /// Whether an address is known.
    ///
    /// # Errors
    /// A system call fails.
    pub fn find(&self, address: IpAddr) -> Result<bool> {
        match self.map.get(&key(address), 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(error).context("look up ENDPOINTS"),
        }
    }

    /// Every known address, as its [`key`].
    ///
    /// # Errors
    /// A system call fails.
    pub fn keys(&self) -> Result<BTreeSet<[u8; 16]>> {
        self.map.keys().collect::<Result<_, _>>().context("read ENDPOINTS")
    }
}

/// An address as the map's key: IPv4 as `::ffff:a.b.c.d`.
pub fn key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Finds a file of this name below a folder.
fn find(directory: &Path, name: &str) -> Result<PathBuf> {
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|file| file == name) {
                return Ok(path);
            }
        }
    }
    bail!("no {name} below {}", directory.display())
}
