#!/bin/sh
# Makes /opt/echo a checkout of /srv/echo.git, whose app is built: the tags 1 and 2 of it, and the branch broken.
set -eu
export GIT_AUTHOR_NAME=test GIT_AUTHOR_EMAIL=test@localhost GIT_COMMITTER_NAME=test GIT_COMMITTER_EMAIL=test@localhost
git init --quiet --bare --initial-branch=main /srv/echo.git
cd /opt/echo
git init --quiet --initial-branch=main
git remote add origin /srv/echo.git
printf '.env\nmusic/\n' > .gitignore
sed -i 's|image: echo-test-app:.*|build: .\n    image: echo-built|' docker-compose.yml

release() {
  echo "FROM echo-test-app:$1" > Dockerfile
  git add .gitignore Dockerfile docker-compose.yml
  git commit --quiet --message "$1"
}

release 1
git tag 1
git push --quiet origin main 1
docker compose --project-name echo build
docker compose --project-name echo up --detach --wait
# What the remote has now is unknown to the checkout.
git clone --quiet /srv/echo.git /srv/maker
cd /srv/maker
release 2
git tag 2
git push --quiet origin main 2
git checkout --quiet -b broken
release 2-broken
git push --quiet origin broken
