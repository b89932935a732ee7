# What the agent of the servers may do in the vault: read one secret.
#
#   bao policy write aggios policy.hcl
#   bao write auth/approle/role/aggios token_policies=aggios token_ttl=1h token_max_ttl=24h
path "secret/data/aggios" {
  capabilities = ["read"]
}
