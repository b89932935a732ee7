import { databaseKinds } from './database-findings.ts'
import { error, type Kind, manual, warning } from './kinds.ts'

/** Everything that the doctor can find, by code. A code never changes its meaning. */
export const kinds: ReadonlyMap<string, Kind> = new Map(
  Object.entries({
    // settings
    settings_invalid: error(
      'A setting cannot be used, so the server does not start',
      'Correct the setting: .env.example lists all of them.',
      manual('what-production-refuses')
    ),
    development_mode: warning(
      'A server that others can reach runs with the settings of a laptop',
      'Set NODE_ENV=production.',
      manual('what-production-refuses')
    ),
    weak_secret: error(
      'A secret can be guessed',
      'Make a new one by `openssl rand -base64 32`.',
      manual('changing-secrets')
    ),
    shared_secret: error(
      'Two secrets have the same value, so one leak reveals both',
      'Make a new value for one of them by `openssl rand -base64 32`.',
      manual('changing-secrets')
    ),
    secrets_readable: warning(
      'Other users of the machine can read the secrets',
      'chmod 600 .env',
      manual('what-production-refuses')
    ),
    plain_text_connection: error(
      'Secrets or data cross a network unencrypted',
      'Set the URL of the encrypted service: sslmode=verify-full, rediss://, smtps:// or https://.',
      manual('what-production-refuses')
    ),
    owner_credentials_served: warning(
      'A process that serves has the credentials of the owner of the tables',
      'Leave DATABASE_OWNER_URL out, and migrate by `npm run migrate`.',
      manual('who-has-the-owners-credentials')
    ),
    trust_proxy_missing: warning(
      'Every request counts for the address of the proxy',
      'Set TRUST_PROXY to the addresses of the proxy.',
      manual('docker-and-traefik')
    ),
    trust_proxy_too_wide: warning(
      'Too many machines may say which address a request comes from',
      'Name the addresses of the proxies in TRUST_PROXY, and no others.',
      manual('docker-and-traefik')
    ),
    rate_limits_off: warning(
      'A limit of requests is off',
      'Remove the setting, so that the default holds.',
      manual('limits-and-time-outs')
    ),
    sweep_off: warning(
      'Nothing is removed from the store of files',
      'Set SWEEP=on, or SWEEP=report while you look.',
      manual('files-after-a-restore')
    ),
    mail_not_sent: warning(
      'No mail is sent: people cannot be invited, and cannot set a forgotten password',
      'Set SMTP_URL.',
      manual('mail')
    ),
    redis_missing: warning(
      'Several processes count limits and attempts each for itself',
      'Set REDIS_URL.',
      manual('redis')
    ),
    too_many_processes: warning(
      'There are more processes than cores',
      'Set WEB_CONCURRENCY to the number of cores.',
      'docs/scaling.md#processes-and-replicas'
    ),
    // the machine
    disk_full: error('The disk is full', 'Make room, or set DATA_DIR to a larger disk.', 'docs/doctor.md#the-machine'),
    disk_nearly_full: warning(
      'The disk is nearly full',
      'Make room, or set DATA_DIR to a larger disk.',
      'docs/doctor.md#the-machine'
    ),
    few_file_descriptors: warning(
      'The process may open few files and connections',
      'Raise the limit to 65536: LimitNOFILE of systemd, or `ulimit -n`.',
      'docs/doctor.md#the-machine'
    ),
    image_outdated: error(
      'An image of compose.yaml has a known hole',
      'Write the fixed version into the file, and run `docker compose up -d --build` for its service.',
      'docs/doctor.md#known-holes'
    ),
    ...databaseKinds,
    // Redis
    redis_unreachable: error(
      'Redis cannot be reached, so each process counts for itself',
      'Start Redis, or correct REDIS_URL.',
      manual('redis')
    ),
    redis_slow: warning('Redis is far away', 'Run Redis in the same network as the product.', manual('redis')),
    redis_outdated: error(
      'Redis has a known hole',
      'Install the fixed version of Redis.',
      'docs/doctor.md#known-holes'
    ),
    redis_open: error(
      'Redis lets everybody in who can reach it',
      'Start it by db/deploy/redis.sh, or set a password for its default user.',
      manual('redis')
    ),
    redis_unusable: error(
      'The product cannot use this Redis',
      'Point REDIS_URL at a single primary.',
      'docs/scaling.md#redis'
    ),
    // the store of files
    store_unreachable: error(
      'The store of files cannot be reached',
      'Start the store, or correct S3_ENDPOINT.',
      manual('files')
    ),
    store_refuses: error(
      'The store of files refuses the product',
      'Correct S3_BUCKET and the key, and give it the rights in db/deploy/bucket-policy.json.',
      manual('files')
    ),
    store_slow: warning('The store of files is far away', 'Use a bucket in the same region.', manual('files')),
    store_outdated: error(
      'The store of files has a known hole',
      'Install the fixed version of the store.',
      'docs/doctor.md#known-holes'
    ),
    bucket_public: error(
      'Strangers can read the bucket',
      'Remove the bucket policy and the ACL that allow it; the product signs its links.',
      manual('files')
    ),
    store_key_too_powerful: warning(
      "The product's key may do more than it needs",
      'Give it the rights in db/deploy/bucket-policy.json, and no others.',
      manual('files')
    ),
    store_fenced: warning(
      'The store belongs to another database, so nothing is removed from it',
      'npm run files -- compare, then accept-store',
      manual('files-after-a-restore')
    ),
    files_not_copied: warning(
      'The copy of the files in the bucket for backups is old',
      'Look at the log of `npm run files -- backup --every 60`.',
      'docs/backups.md#watching-them'
    ),
    // other services
    app_url_unreachable: warning(
      'The links in mails lead nowhere',
      'Correct APP_URL, or its DNS entry.',
      manual('mail')
    ),
    api_url_unreachable: error(
      'The public address of the API does not lead here',
      'Correct API_URL, its DNS entry, or the proxy.',
      manual('docker-and-traefik')
    ),
    certificate_expiring: warning(
      'A certificate expires soon',
      'Renew it: Traefik does so by itself when its DNS credentials are right.',
      manual('docker-and-traefik')
    ),
    mail_server_unreachable: error('The mail server does not let the product in', 'Correct SMTP_URL.', manual('mail')),
    provider_unreachable: warning(
      'A provider of sign-ins cannot be reached',
      'Let the product reach it, or correct its address.',
      'docs/providers.md#set-up'
    ),
    breach_list_unreachable: warning(
      'Passwords from breaches are accepted, because the list cannot be reached',
      'Let the product reach it, or correct BREACH_LIST_URL.',
      manual('guessing-passwords')
    )
  } satisfies Record<string, Kind>)
)
