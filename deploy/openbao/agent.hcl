# The agent of OpenBao (or Vault) that writes the secrets of the product into files: bao agent -config=agent.hcl
# The product reads a file that changes again, so nothing is restarted when a secret changes in the vault. docs/secrets.md
#
# It runs beside the servers, as the user that they run as, and signs in with an AppRole whose policy is policy.hcl.

vault {
  address = "https://vault.example:8200"
}

auto_auth {
  method "approle" {
    config = {
      role_id_file_path   = "/etc/aggios/openbao/role_id"
      secret_id_file_path = "/etc/aggios/openbao/secret_id"
      # the agent must be able to sign in again after a restart
      remove_secret_id_file_after_reading = false
    }
  }
}

template_config {
  # how soon a change in the vault is in the files
  static_secret_render_interval = "10s"
  exit_on_retry_failure         = false
}

# One file for each secret. A member that is missing in the vault leaves the file as it is, and the agent's log says so.
template {
  destination          = "/run/secrets/aggios/jwt_secret"
  contents             = "{{ with secret \"secret/data/aggios\" }}{{ .Data.data.jwt_secret }}{{ end }}"
  error_on_missing_key = true
  perms                = "0600"
}

template {
  destination          = "/run/secrets/aggios/password_pepper"
  contents             = "{{ with secret \"secret/data/aggios\" }}{{ .Data.data.password_pepper }}{{ end }}"
  error_on_missing_key = true
  perms                = "0600"
}

template {
  destination          = "/run/secrets/aggios/database_url"
  contents             = "{{ with secret \"secret/data/aggios\" }}{{ .Data.data.database_url }}{{ end }}"
  error_on_missing_key = true
  perms                = "0600"
}

template {
  destination          = "/run/secrets/aggios/redis_url"
  contents             = "{{ with secret \"secret/data/aggios\" }}{{ .Data.data.redis_url }}{{ end }}"
  error_on_missing_key = true
  perms                = "0600"
}

template {
  destination          = "/run/secrets/aggios/s3_access_key"
  contents             = "{{ with secret \"secret/data/aggios\" }}{{ .Data.data.s3_access_key }}{{ end }}"
  error_on_missing_key = true
  perms                = "0600"
}

template {
  destination          = "/run/secrets/aggios/s3_secret_key"
  contents             = "{{ with secret \"secret/data/aggios\" }}{{ .Data.data.s3_secret_key }}{{ end }}"
  error_on_missing_key = true
  perms                = "0600"
}

template {
  destination          = "/run/secrets/aggios/smtp_url"
  contents             = "{{ with secret \"secret/data/aggios\" }}{{ .Data.data.smtp_url }}{{ end }}"
  error_on_missing_key = true
  perms                = "0600"
}
