# What program 0.1.0 made with the base model in tiny/ (random weights, 16 pixels), in this folder.
set -e
export CONCEPT_REGISTRY=registry
C=${C:-concept}
$C add rex photos --category dog
$C add mia photos/01.png --category cat
teach="$C train --base tiny --seed 7 --preview-every 0 --set augmentation.crops=4 --quiet"
$teach rex --method textual-inversion --set embedding.steps=3 --set embedding.batch=2 --set embedding.learning_rate=1
$teach rex --method sefi --set embedding.steps=3 --set embedding.batch=2 --set embedding.learning_rate=1
$teach rex --method sefi --set parametrisation=network --set embedding.steps=3 --set embedding.batch=2 --set embedding.learning_rate=0.3
$teach rex --method attndreambooth --set stage1.steps=2 --set stage1.batch=2 --set stage1.learning_rate=0.1 --set stage2.steps=3 --set stage2.batch=2 --set stage2.learning_rate=3e-3 --set stage3.steps=2 --set stage3.batch=2 --set stage3.learning_rate=1e-3
$teach rex --method attndreambooth --set rank=2 --set stage1.steps=2 --set stage1.batch=2 --set stage1.learning_rate=0.1 --set stage2.steps=3 --set stage2.batch=2 --set stage2.learning_rate=3e-2 --set stage3.steps=2 --set stage3.batch=2 --set stage3.learning_rate=1e-2
$teach rex --method dreambooth --set prior.num_images=2 --set unet.steps=3 --set unet.batch=2 --set unet.learning_rate=3e-3
for version in 1 2 3 4 5 6; do
  $C generate "a photo of <rex@$version> on the beach" --base tiny --steps 4 --seed 1 -n 1 --out pictures
done
# and mia, by textual-inversion, interrupted in step 4 of 8:
#   $teach mia --method textual-inversion --set embedding.steps=8 --set embedding.batch=2 --set embedding.learning_rate=0.01
