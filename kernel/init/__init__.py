"""Start the service, bind its ports, and tidy up after it: init, the process that the operator starts."""
