//! One generation of the policy, opened: what a request keeps from its first step to its last.
