//! EH-05: what an exchange did, in an order that it cannot change afterwards.
