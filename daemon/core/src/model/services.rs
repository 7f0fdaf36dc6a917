//! The services as the model keeps them, each with its endpoint slices. There may be hundreds of
//! thousands of endpoints, so repeated strings are shared.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::words::Words;
use crate::names::ServiceName;
use crate::objects::{Endpoint, EndpointSliceObject, Hints, ServiceObject};

/// The services, and the slices of services that may come later.
#[derive(Debug, Default)]
pub(crate) struct Services {
    by_name: BTreeMap<ServiceName, Service>,
    /// The service of each slice: its label may change.
    owners: BTreeMap<ServiceName, ServiceName>,
    words: Words,
    hints: Words<Hints>,
}

/// A service and its slices, whichever came first.
#[derive(Debug, Default)]
pub(crate) struct Service {
    object: Option<Arc<ServiceObject>>,
    /// By name.
    slices: BTreeMap<Arc<str>, Arc<EndpointSliceObject>>,
}

impl Service {
    /// Its endpoint slices, in the order of their names.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &EndpointSliceObject> {
        self.slices.values().map(|slice| &**slice)
    }

    fn is_empty(&self) -> bool {
        self.object.is_none() && self.slices.is_empty()
    }
}

impl Services {
    /// Returns the service's name if anything has changed.
    pub(super) fn put(&mut self, mut object: ServiceObject) -> Option<ServiceName> {
        object.name.namespace = self.words.share(object.name.namespace);
        for port in &mut object.ports {
            port.name = self.words.share(Arc::clone(&port.name));
        }
        let name = match self.by_name.get_key_value(&object.name) {
            Some((_, known)) if known.object.as_deref() == Some(&object) => return None,
            Some((name, _)) => name.clone(),
            None => object.name.clone(),
        };
        object.name = name.clone();
        self.by_name.entry(name.clone()).or_default().object = Some(Arc::new(object));
        Some(name)
    }

    /// Returns whether the service was there.
    pub(super) fn remove(&mut self, name: &ServiceName) -> bool {
        let Some(service) = self.by_name.get_mut(name) else { return false };
        let was_there = service.object.take().is_some();
        self.tidy(name);
        was_there
    }

    /// Returns the services that have changed: the slice's, and the one that it belonged to before.
    pub(super) fn put_slice(&mut self, mut slice: EndpointSliceObject) -> Vec<ServiceName> {
        self.share(&mut slice);
        let service = ServiceName { namespace: Arc::clone(&slice.name.namespace), name: Arc::clone(&slice.service) };
        let service = self.by_name.get_key_value(&service).map_or(service, |(name, _)| name.clone());
        slice.service = Arc::clone(&service.name);
        let mut changed = Vec::new();
        if let Some(before) = self.owners.get(&slice.name).filter(|before| **before != service).cloned() {
            self.take_slice(&before, &slice.name);
            changed.push(before);
        }
        let known = self.by_name.entry(service.clone()).or_default();
        if known.slices.get(&slice.name.name).is_none_or(|before| **before != slice) {
            self.owners.insert(slice.name.clone(), service.clone());
            known.slices.insert(Arc::clone(&slice.name.name), Arc::new(slice));
            changed.push(service);
        }
        changed
    }

    /// Returns the service that the slice belonged to.
    pub(super) fn remove_slice(&mut self, slice: &ServiceName) -> Option<ServiceName> {
        let service = self.owners.remove(slice)?;
        self.take_slice(&service, slice);
        Some(service)
    }

    /// The service's object and its slices, if the object is there.
    pub(crate) fn find(&self, name: &ServiceName) -> Option<(&Arc<ServiceObject>, &Service)> {
        let service = self.by_name.get(name)?;
        Some((service.object.as_ref()?, service))
    }

    /// The services that have an object, in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ServiceName, &Arc<ServiceObject>, &Service)> {
        self.by_name.iter().filter_map(|(name, service)| Some((name, service.object.as_ref()?, service)))
    }

    fn take_slice(&mut self, service: &ServiceName, slice: &ServiceName) {
        if let Some(known) = self.by_name.get_mut(service) {
            known.slices.remove(&slice.name);
            self.tidy(service);
        }
    }

    fn tidy(&mut self, name: &ServiceName) {
        if self.by_name.get(name).is_some_and(Service::is_empty) {
            self.by_name.remove(name);
        }
    }

    fn share(&mut self, slice: &mut EndpointSliceObject) {
        slice.name.namespace = self.words.share(Arc::clone(&slice.name.namespace));
        for port in &mut slice.ports {
            port.name = self.words.share(Arc::clone(&port.name));
        }
        for endpoint in &mut slice.endpoints {
            let Endpoint { node, hints, .. } = endpoint;
            *node = node.take().map(|node| self.words.share(node));
            *hints = hints.take().map(|hints| self.hints.share(hints));
        }
        slice.ports.shrink_to_fit();
        slice.endpoints.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{service, slice};

    fn name(name: &str) -> ServiceName {
        ServiceName::new("shop", name)
    }

    fn slices(services: &Services, name: &ServiceName) -> Vec<String> {
        services
            .by_name
            .get(name)
            .map(|it| it.slices().map(|slice| slice.name.name.to_string()).collect())
            .unwrap_or_default()
    }

    #[test]
    fn a_slice_may_come_first_and_moves_with_its_label() {
        let mut services = Services::default();
        let object = slice("shop/cart-1", "cart", &["10.0.1.5"]);
        assert_eq!(services.put_slice(object.clone()), [name("cart")]);
        assert!(services.find(&name("cart")).is_none(), "only its slice is there");
        assert_eq!(services.iter().count(), 0);
        assert_eq!(services.put_slice(object.clone()), []);
        assert_eq!(services.put(service("shop/cart", "10.96.0.1")), Some(name("cart")));
        assert_eq!(services.put(service("shop/cart", "10.96.0.1")), None);
        assert_eq!(services.find(&name("cart")).unwrap().1.slices().count(), 1);

        let moved = EndpointSliceObject { service: "pay".into(), ..object };
        assert_eq!(services.put_slice(moved), [name("cart"), name("pay")]);
        assert_eq!((slices(&services, &name("cart")).len(), slices(&services, &name("pay")).len()), (0, 1));
        assert_eq!(services.remove_slice(&name("cart-1")), Some(name("pay")));
        assert_eq!(services.remove_slice(&name("cart-1")), None);
        assert!(services.remove(&name("cart")));
        assert!(!services.remove(&name("cart")));
        assert_eq!((services.by_name.len(), services.owners.len()), (0, 0), "nothing is left behind");
    }

    #[test]
    fn what_many_endpoints_have_is_kept_once() {
        let mut services = Services::default();
        for number in 0..2 {
            let mut object = slice(&format!("shop/cart-{number}"), "cart", &["10.0.1.5", "10.0.1.6"]);
            let hints = Hints { zones: vec!["a".into()], nodes: Vec::new() };
            object.endpoints.iter_mut().for_each(|it| it.hints = Some(Arc::new(hints.clone())));
            services.put_slice(object);
        }
        let endpoints: Vec<&Endpoint> = services.by_name[&name("cart")].slices().flat_map(|it| &it.endpoints).collect();
        for other in &endpoints[1..] {
            assert!(Arc::ptr_eq(endpoints[0].node.as_ref().unwrap(), other.node.as_ref().unwrap()));
            assert!(Arc::ptr_eq(endpoints[0].hints.as_ref().unwrap(), other.hints.as_ref().unwrap()));
        }
    }
}
