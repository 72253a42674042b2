//! Conditions and the filters' choice to the branches an event is delivered on. Pure.
