"""List the choices that other packages read as rows of facts; imports nothing."""
