"""From a bank and a method to a trained adaptor."""
