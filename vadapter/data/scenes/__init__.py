"""The `scenes` world: small pictures, clips and texts about shapes and handwritten digits on a 3x3 grid."""
